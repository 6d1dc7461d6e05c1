"""How a result was measured: one frozen record that is stamped into it; different protocols are never compared."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import Any

from pydantic import Field

import diffcompress
from diffcompress.errors import UsageError
from diffcompress.records.record import Record

AGREEMENT_IMAGES = 128
_NOT_COMPARED = ("versions", "aside_samples")
# What earlier results do not say of themselves.
_FORMER = {"precision": "float32"}


class Protocol(Record):
    """Everything a number depends on besides the models."""

    feature_space: str | None
    extractor: str | None = Field(None, description="SHA-256 of the feature extractor")
    reference: str | None = Field(None, description="SHA-256 of the real images' statistics, or of the user's images")
    sampler: str = Field(description="its first-order solver")
    sampler_steps: int
    sample_shape: list[int] = Field(default_factory=list, description="of what the denoiser sees, without the batch")
    eta: float = 0.0
    guidance: float = Field(1.0, description="classifier-free guidance scale, 1 for none")
    conditions: str | None = Field(None, description="SHA-256 of the prompts that samples are drawn for")
    num_samples: int
    seed: int
    agreement_clean: str = Field("", description="where the clean images of `agreement` come from")
    agreement_images: int = AGREEMENT_IMAGES
    agreement_levels: int = 10
    clip: str | None = Field(None, description="SHA-256 of CLIP, where it stands beside another feature space")
    pick: str | None = Field(None, description="SHA-256 of PickScore, where it stands beside another feature space")
    aside_samples: int | None = Field(
        None, description="samples of the untrained and of the corrected student, where they are fewer"
    )
    precision: str = Field("float32", description="what teacher and students compute in")
    revision: int = 1
    versions: dict[str, str] = Field(default_factory=dict, description="recorded, but may differ")

    @classmethod
    def whole(cls, **values: Any) -> Protocol:
        """With all fields, so that what they are by default is written, and compared, too."""
        made = cls(**values)
        return made.model_copy(update={name: getattr(made, name) for name in cls.model_fields})

    @property
    def sampling_seed(self) -> int:
        """Seed of the samples: no bank, drawn with a run's own seed, holds the same ones."""
        return self.seed + 1_000_003


def versions() -> dict[str, str]:
    """Versions of diffcompress, Python and the libraries that compute, by name."""
    libraries = {name: version(name) for name in ("torch", "diffusers", "numpy")}
    return {"diffcompress": diffcompress.__version__, "python": platform.python_version(), **libraries}


def check_same(one: Protocol, other: Protocol) -> None:
    """Raise UsageError unless two results were measured in the same way, as far as their records say."""
    first, second = _FORMER | one.to_json(), _FORMER | other.to_json()
    keys = [key for key in sorted({*first, *second}) if key not in _NOT_COMPARED]
    differing = [f"{key} is {first.get(key)!r} and {second.get(key)!r}" for key in keys]
    differing = [told for key, told in zip(keys, differing, strict=True) if first.get(key) != second.get(key)]
    if differing:
        raise UsageError(
            f"these results were measured differently and cannot be compared: {'; '.join(differing)}",
            "evaluate both with the same options",
        )
