"""Flow matching, the process of SD3, Flux and their kin."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .process import LARGEST, Columns, Factor, Grid, NoiseProcess, Sample, Timesteps, as_factor, check_steps, is_number


@dataclass(frozen=True)
class Flow(NoiseProcess):
    """shift: of the noise levels towards pure noise, s sigma / (1 + (s - 1) sigma) (Esser et al. 2024, eq. 23)."""

    shift: float = 1.0
    num_timesteps: int = 1000
    prediction_type: str = "flow_prediction"
    sampler: ClassVar[str] = "euler"
    velocity: ClassVar[str] = "flow_prediction"

    @classmethod
    def from_config(cls, config: Mapping[str, Any], num_tokens: int | None = None) -> Flow:
        if config.get("invert_sigmas"):
            raise ValueError("a flow whose noise levels run backwards (invert_sigmas) is not supported")
        steps = config.get("num_train_timesteps", 1000)
        check_steps(steps)
        shift = config.get("flow_shift") or config.get("shift") or 1.0
        if config.get("use_dynamic_shifting") and num_tokens is not None:
            shift = _dynamic_shift(config, num_tokens)
        if not is_number(shift) or not 0 < shift <= LARGEST:
            raise ValueError(f"a shift of {shift!r} is no shift of noise levels")
        return cls(float(shift), steps)

    def same_as(self, other: NoiseProcess) -> bool:
        return isinstance(other, Flow) and self.num_timesteps == other.num_timesteps

    def predicting(self, prediction_type: str) -> Flow:
        if prediction_type != self.prediction_type:
            raise ValueError(f"flow matching has one prediction, its velocity, and no {prediction_type}")
        return self

    def at(self, share: Tensor) -> Tensor:
        return self._timestep(share)

    def share_of(self, timestep: Timesteps) -> Tensor:
        sigma = timestep.double() / self.num_timesteps
        return sigma / (self.shift - (self.shift - 1) * sigma)

    def _timestep(self, sigma: Tensor) -> Tensor:
        """Float timesteps of unshifted noise levels in (0, 1]."""
        sigma = sigma.double().clamp(1.0 / self.num_timesteps, 1.0)
        return (self.num_timesteps * self.shift * sigma / (1 + (self.shift - 1) * sigma)).float()

    def draw_timesteps(self, count: int, generator: torch.Generator, scheme: str = "uniform") -> Columns:
        if scheme == "uniform":
            return self._timestep(torch.rand(count, generator=generator))
        half = torch.rand(count // 2 + 1, generator=generator)
        return self._timestep(torch.stack([half, 1 - half], 1).flatten()[:count])

    def signal_and_noise(self, timestep: Timesteps, like: Sample) -> tuple[Factor, Factor]:
        sigma = as_factor(timestep.cpu().double() / self.num_timesteps, like)
        return 1 - sigma, sigma

    def target(self, clean: Sample, noise: Sample, timestep: Timesteps) -> Sample:
        return noise - clean

    def clean_and_noise(self, prediction: Sample, noisy: Sample, timestep: Timesteps) -> tuple[Sample, Sample]:
        signal, sigma = self.signal_and_noise(timestep, noisy)
        return noisy - sigma * prediction, noisy + signal * prediction

    def grid(self, num_steps: int, offset: Columns | None = None) -> Grid:
        """Evenly spread before the shift, from pure noise; an offset moves all but the first."""
        base = torch.arange(num_steps, 0, -1, dtype=torch.float64)[:, None]
        if offset is not None:
            moved = base - offset.to(torch.float64)[None, :]
            base = torch.cat([base[:1].expand(1, len(offset)), moved[1:]])
        return self._timestep(base / num_steps)

    def step(
        self, prediction: Sample, noisy: Sample, timestep: Timesteps, following: Timesteps, eta: float, noise: Sample
    ) -> Sample:
        """One Euler step; eta replaces as much of the noise as ancestral sampling does at the same signal-to-noise."""
        clean, direction = self.clean_and_noise(prediction, noisy, timestep)
        signal, sigma = self.signal_and_noise(timestep, noisy)
        signal_next, sigma_next = self.signal_and_noise(following.clamp(min=0), noisy)
        # Signal power after scaling to unit variance: the abar of a diffusion at this noise level.
        here, there = (a**2 / (a**2 + b**2) for a, b in ((signal, sigma), (signal_next, sigma_next)))
        share = eta**2 * ((1 - here / there.clamp(min=1e-12)) / (1 - here).clamp(min=1e-12)).clamp(0, 1)
        return signal_next * clean + sigma_next * ((1 - share).sqrt() * direction + share.sqrt() * noise)


def _dynamic_shift(config: Mapping[str, Any], num_tokens: int) -> float:
    """exp(mu), with mu linear in the number of tokens, as the pipelines of Flux and its kin compute it."""
    low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    least, most = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    mu = least + (most - least) * (num_tokens - low) / (high - low)
    return mu if config.get("time_shift_type", "exponential") == "linear" else math.exp(mu)
