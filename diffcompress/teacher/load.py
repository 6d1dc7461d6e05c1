"""Load a reference into a LoadedPipeline: teachers, and students in `evaluate`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from diffcompress.errors import UsageError
from diffcompress.families import registry
from diffcompress.families.base import Family
from diffcompress.noise import NoiseProcess
from diffcompress.teacher.reference import Reference
from diffcompress.teacher.weights import check_state, fingerprint, open_state


@dataclass(frozen=True)
class LoadedPipeline:
    """A denoiser in float32 and evaluation mode, with all that sampling from it takes.

    dtype: of the stored weights (the default for exports); fingerprint: SHA-256 over configs and weights.
    """

    reference: Reference
    family: Family
    denoiser: nn.Module
    noise: NoiseProcess
    dtype: torch.dtype
    fingerprint: str

    @property
    def config(self) -> Mapping[str, Any]:
        return self.reference.config

    @property
    def sample_shape(self) -> tuple[int, ...]:
        return self.family.sample_shape(self.config)

    @property
    def device(self) -> torch.device:
        return next(self.denoiser.parameters()).device

    def predict(self, noisy: Tensor, timestep: Tensor, conditioning: Mapping[str, Tensor]) -> Tensor:
        return self.family.predict(self.denoiser, noisy, timestep, conditioning)


def describe(reference: Reference) -> tuple[Family, NoiseProcess]:
    """Family and noise process from configs alone; raises UsageError for what cannot be distilled."""
    family = registry.find(reference.class_name)
    try:
        return family, NoiseProcess.from_config(reference.scheduler)
    except ValueError as error:
        raise UsageError(
            f"'{reference.id}' cannot be distilled: {error}",
            "DDPM-type teachers with epsilon, sample or v prediction can",
        ) from error


def load(reference: Reference, device: torch.device | str = "cpu") -> LoadedPipeline:
    """Read the weights of `reference`, downloaded first when they lie on the Hub.

    Raises UsageError when they are missing, truncated, of other shapes, not finite, or pickled beyond a state dict;
    AccessError when the Hub refuses.
    """
    family, noise = describe(reference)
    cls = getattr(diffusers, family.class_name)
    state = open_state(reference)
    config = {k: v for k, v in reference.config.items() if not k.startswith("_") and k != "quantization_config"}
    try:
        with torch.device("meta"):
            denoiser = cls.from_config(config)
    except Exception as error:
        raise UsageError(
            f"{reference.denoiser / 'config.json'} does not build a {family.class_name}: {error}", "check the config"
        ) from error
    check_state(state, denoiser)
    denoiser.load_state_dict({name: value.float() for name, value in state.items()}, assign=True)
    denoiser = denoiser.to(device).eval().requires_grad_(False)
    return LoadedPipeline(reference, family, denoiser, noise, state.dtype, fingerprint(reference, state.files))


def state_fingerprint(denoiser: nn.Module) -> str:
    """SHA-256 over the tensors of a denoiser in memory, to key what is sampled from it."""
    digest = hashlib.sha256()
    for name, value in denoiser.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
