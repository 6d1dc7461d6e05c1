"""The noise process of a teacher: the only owner of timestep draws, noisy inputs and prediction conversions.

Variance-preserving ("DDPM-type") processes: x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise, t in 0..T-1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")


@dataclass(frozen=True)
class NoiseProcess:
    """alphas_cumprod: `[T]` float64, abar_t; prediction_type: what the denoiser returns, as diffusers spells it."""

    alphas_cumprod: Tensor
    prediction_type: str
    clip_sample: bool = False
    clip_sample_range: float = 1.0

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> NoiseProcess:
        """From a diffusers scheduler config; raises ValueError naming what cannot be distilled."""
        from diffusers import DDPMScheduler

        name = config.get("_class_name", "DDPMScheduler")
        if name not in ("DDPMScheduler", "DDIMScheduler", "PNDMScheduler", "DDPMParallelScheduler", "DDIMParallelScheduler"):
            raise ValueError(f"scheduler {name} is not a DDPM-type process")
        prediction_type = config.get("prediction_type", "epsilon")
        if prediction_type not in PREDICTION_TYPES:
            raise ValueError(f"prediction_type '{prediction_type}' is not one of {', '.join(PREDICTION_TYPES)}")
        if config.get("thresholding"):
            raise ValueError("dynamic thresholding is not supported")
        scheduler = DDPMScheduler.from_config(dict(config))
        return cls(
            scheduler.alphas_cumprod.double(),
            prediction_type,
            bool(config.get("clip_sample", True)),
            float(config.get("clip_sample_range", 1.0)),
        )

    @property
    def num_timesteps(self) -> int:
        return len(self.alphas_cumprod)

    def draw_timesteps(self, count: int, generator: torch.Generator, scheme: str = "uniform") -> Tensor:
        """`[count]` timesteps; "antithetic": pairs (t, T-1-t) as the published pixel recipe draws them."""
        if scheme == "uniform":
            return torch.randint(0, self.num_timesteps, (count,), generator=generator)
        half = torch.randint(0, self.num_timesteps, (count // 2 + 1,), generator=generator)
        return torch.stack([half, self.num_timesteps - 1 - half], 1).flatten()[:count]

    def signal_and_noise(self, timestep: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(abar_t) and sqrt(1 - abar_t), shaped `[B, 1, ...]` to multiply `like` `[B, C, ...]`."""
        alpha = self.alphas_cumprod.to(timestep.device)[timestep]
        shape = (-1,) + (1,) * (like.dim() - 1)
        return alpha.sqrt().to(like.dtype).view(shape), (1 - alpha).sqrt().to(like.dtype).view(shape)

    def noisy(self, clean: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        signal, sigma = self.signal_and_noise(timestep, clean)
        return signal * clean + sigma * noise

    def target(self, clean: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """What the plain diffusion loss compares a prediction with."""
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "sample":
            return clean
        signal, sigma = self.signal_and_noise(timestep, clean)
        return signal * noise - sigma * clean

    def clean_and_noise(self, prediction: Tensor, noisy: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """The clean image and the noise that a prediction implies, clipped where the scheduler clips."""
        signal, sigma = self.signal_and_noise(timestep, noisy)
        if self.prediction_type == "epsilon":
            clean = (noisy - sigma * prediction) / signal
        elif self.prediction_type == "sample":
            clean = prediction
        else:
            clean = signal * noisy - sigma * prediction
        if self.clip_sample:
            clean = clean.clamp(-self.clip_sample_range, self.clip_sample_range)
        return clean, (noisy - signal * clean) / sigma

    def grid(self, num_steps: int, offset: Tensor | None = None) -> Tensor:
        """Descending timesteps `[num_steps, B]` evenly spread over 0..T-1; `offset` `[B]` in [0, 1) shifts each column."""
        stride = self.num_timesteps / num_steps
        base = torch.arange(num_steps - 1, -1, -1, dtype=torch.float64)[:, None]
        position = base if offset is None else base + offset.to(torch.float64)[None, :]
        return (position * stride).long().clamp(max=self.num_timesteps - 1)

    def step(self, prediction: Tensor, noisy: Tensor, timestep: Tensor, following: Tensor, eta: float, noise: Tensor) -> Tensor:
        """One DDIM step (Song et al. 2021, eq. 12) from `timestep` to `following` (-1: the clean image), both `[B]`."""
        clean, _ = self.clean_and_noise(prediction, noisy, timestep)
        shape = (-1,) + (1,) * (noisy.dim() - 1)
        alphas = self.alphas_cumprod.to(noisy.device)
        alpha = alphas[timestep]
        alpha_next = torch.where(following >= 0, alphas[following.clamp(min=0)], torch.ones_like(alpha))
        spread = eta * ((1 - alpha_next) / (1 - alpha) * (1 - alpha / alpha_next)).clamp(min=0).sqrt()
        residual = (noisy - alpha.sqrt().to(noisy.dtype).view(shape) * clean) / (1 - alpha).sqrt().to(noisy.dtype).view(shape)
        direction = (1 - alpha_next - spread**2).clamp(min=0).sqrt().to(noisy.dtype).view(shape) * residual
        return alpha_next.sqrt().to(noisy.dtype).view(shape) * clean + direction + spread.to(noisy.dtype).view(shape) * noise


def generator(*integers: int) -> torch.Generator:
    """A CPU generator that follows from `integers` alone, so that no random state is ever stored."""
    import numpy as np

    state = np.random.SeedSequence(integers).generate_state(2, dtype=np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 31 ^ int(state[1]))
