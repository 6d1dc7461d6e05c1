"""How a result was measured: one frozen record that is stamped into it; different protocols are never compared."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any

import diffcompress
from diffcompress.errors import UsageError

_NOT_COMPARED = ("versions",)


def _versions() -> dict[str, str]:
    libraries = {name: version(name) for name in ("torch", "diffusers", "numpy")}
    return {"diffcompress": diffcompress.__version__, "python": platform.python_version(), **libraries}


@dataclass(frozen=True)
class Protocol:
    """Everything a number depends on besides the models.

    feature_space: name, or None; extractor, reference: SHA-256 of the extractor and of the real images' statistics, or
    of the user's images; sampler: its first-order solver; sample_shape: of what the denoiser sees, without the batch;
    guidance: classifier-free guidance scale, 1 for none; conditions: SHA-256 of the prompts samples are drawn for;
    agreement_clean: where the clean images of `agreement` come from; clip: SHA-256 of CLIP where it stands beside
    another space; versions are recorded, but may differ.
    """

    feature_space: str | None = None
    extractor: str | None = None
    reference: str | None = None
    sampler: str = "ddim"
    sampler_steps: int = 25
    sample_shape: tuple[int, ...] = ()
    eta: float = 0.0
    guidance: float = 1.0
    conditions: str | None = None
    num_samples: int = 2048
    seed: int = 0
    agreement_clean: str = "teacher samples"
    agreement_images: int = 128
    agreement_levels: int = 10
    clip: str | None = None
    revision: int = 1
    versions: dict[str, str] = field(default_factory=_versions, compare=False)

    @property
    def sampling_seed(self) -> int:
        """Seed of the samples: no bank, drawn with a run's own seed, holds the same ones."""
        return self.seed + 1_000_003

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"sample_shape": list(self.sample_shape)}


def check_same(one: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    """Raise UsageError unless two protocol records (as `to_json` writes them) measured in the same way."""
    keys = [key for key in sorted({*one, *other}) if key not in _NOT_COMPARED]
    differing = [f"{key} is {one.get(key)!r} and {other.get(key)!r}" for key in keys if one.get(key) != other.get(key)]
    if differing:
        raise UsageError(
            f"these results were measured differently and cannot be compared: {'; '.join(differing)}",
            "evaluate both with the same options",
        )
