"""Variance-preserving diffusion, the process of DDPM and all solvers over its schedule."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from .process import LARGEST, Columns, Factor, Grid, NoiseProcess, Sample, Timesteps, as_factor, check_steps, is_number

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")

# Times the signal of its noisy sample that a step of sampling from a prediction of the noise may lead to.
STEEPEST = 16


@dataclass(frozen=True)
class Diffusion(NoiseProcess):
    """alphas_cumprod: `[T]` float64, abar_t; prediction_type: what the denoiser returns, as diffusers spells it."""

    alphas_cumprod: Tensor
    prediction_type: str
    clip_sample: bool = False
    clip_sample_range: float = 1.0
    sampler: ClassVar[str] = "ddim"
    velocity: ClassVar[str] = "v_prediction"

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Diffusion:
        import diffusers

        prediction_type = config.get("prediction_type", "epsilon")
        if prediction_type not in PREDICTION_TYPES:
            raise ValueError(f"prediction_type '{prediction_type}' is not one of {', '.join(PREDICTION_TYPES)}")
        if config.get("timestep_type") == "continuous" and prediction_type == "v_prediction":
            raise ValueError("timestep_type 'continuous' tells the logarithm of the noise level, as EDM does")
        told = config.get("predict_epsilon")
        if told not in (None, True) and prediction_type == "epsilon":
            raise ValueError(
                f"predict_epsilon {told!r} is read by no diffusers of today: write prediction_type 'sample'"
            )
        if config.get("thresholding"):
            raise ValueError("dynamic thresholding is not supported")
        schedule = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas")
        name = str(config.get("_class_name", "DDPMScheduler"))
        # What the config leaves out is as its own class has it: some start from Stable Diffusion's betas.
        own = inspect.signature(getattr(diffusers, name).__init__).parameters
        given = {key: own[key].default for key in schedule if key in own} | dict(config)
        kept = {key: given[key] for key in (*schedule, "rescale_betas_zero_snr") if given.get(key) is not None}
        _check_numbers(kept)
        clip_range = config.get("clip_sample_range", 1.0)
        if not is_number(clip_range) or not 0 < clip_range <= LARGEST:
            raise ValueError(f"clip_sample_range {clip_range!r} is no range of a sample")
        try:
            scheduler = diffusers.DDPMScheduler(**kept)
        except NotImplementedError as error:
            raise ValueError(f"beta_schedule '{kept['beta_schedule']}' is not supported") from error
        if len(scheduler.alphas_cumprod) != scheduler.config.num_train_timesteps:
            raise ValueError(
                f"{len(scheduler.alphas_cumprod)} trained_betas for {scheduler.config.num_train_timesteps} timesteps"
            )
        if not ((scheduler.betas >= 0) & (scheduler.betas <= 1)).all():
            raise ValueError(f"its betas are not all between 0 and 1 (largest {scheduler.betas.max():g})")
        # Only these two classes clip what their step predicts, and do so unless told otherwise.
        clips = name.startswith(("DDPM", "DDIM"))
        return cls(
            # Signal or noise of exactly zero would be divided by; diffusers' solvers keep 2^-24 too.
            scheduler.alphas_cumprod.double().clamp(2.0**-24, 1 - 2.0**-24),
            prediction_type,
            clips and bool(config.get("clip_sample", True)),
            float(clip_range),
        )

    def same_as(self, other: NoiseProcess) -> bool:
        return isinstance(other, Diffusion) and torch.equal(self.alphas_cumprod, other.alphas_cumprod)

    def predicting(self, prediction_type: str) -> Diffusion:
        """prediction_type: one of PREDICTION_TYPES; the solvers of all DIFFUSION_SCHEDULERS take any of them."""
        if prediction_type not in PREDICTION_TYPES:
            raise ValueError(f"prediction_type '{prediction_type}' is not one of {', '.join(PREDICTION_TYPES)}")
        return replace(self, prediction_type=prediction_type)

    def at(self, share: Tensor) -> Tensor:
        return (share.double() * self.num_timesteps).long().clamp(0, self.num_timesteps - 1)

    def share_of(self, timestep: Timesteps) -> Tensor:
        return (timestep.double() + 0.5) / self.num_timesteps

    @property
    def num_timesteps(self) -> int:  # type: ignore[override]
        return len(self.alphas_cumprod)

    def draw_timesteps(self, count: int, generator: torch.Generator, scheme: str = "uniform") -> Columns:
        """ "antithetic": pairs (t, T-1-t) as the published pixel recipe draws them."""
        if scheme == "uniform":
            return torch.randint(0, self.num_timesteps, (count,), generator=generator)
        half = torch.randint(0, self.num_timesteps, (count // 2 + 1,), generator=generator)
        return torch.stack([half, self.num_timesteps - 1 - half], 1).flatten()[:count]

    def signal_and_noise(self, timestep: Timesteps, like: Sample) -> tuple[Factor, Factor]:
        """Factors of clean sample and noise in x_t: sqrt(abar_t) and sqrt(1 - abar_t)."""
        alpha = self.alphas_cumprod[timestep.cpu()]
        return as_factor(alpha.sqrt(), like), as_factor((1 - alpha).sqrt(), like)

    def target(self, clean: Sample, noise: Sample, timestep: Timesteps) -> Sample:
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "sample":
            return clean
        signal, sigma = self.signal_and_noise(timestep, clean)
        return signal * noise - sigma * clean

    def clean_and_noise(self, prediction: Sample, noisy: Sample, timestep: Timesteps) -> tuple[Sample, Sample]:
        signal, sigma = self.signal_and_noise(timestep, noisy)
        if self.prediction_type == "epsilon":
            return (noisy - sigma * prediction) / signal, prediction
        if self.prediction_type == "sample":
            return prediction, (noisy - signal * prediction) / sigma
        return signal * noisy - sigma * prediction, sigma * noisy + signal * prediction

    def grid(self, num_steps: int, offset: Columns | None = None) -> Grid:
        """Timesteps spread evenly over 0..T-1; see NoiseProcess."""
        stride = self.num_timesteps / num_steps
        base = torch.arange(num_steps - 1, -1, -1, dtype=torch.float64)[:, None]
        position = base if offset is None else base + offset.to(torch.float64)[None, :]
        return (position * stride).long().clamp(max=self._latest(stride))

    def _latest(self, stride: float) -> int:
        """Timestep that sampling starts from at the latest. What a prediction of the noise errs by grows in a step as
        the signal does: where a schedule ends in noise alone (cosine), the last few would make a sample of that."""
        if self.prediction_type != "epsilon" or self.clip_sample:
            return self.num_timesteps - 1
        signal = self.alphas_cumprod.sqrt()
        following = (torch.arange(self.num_timesteps) - round(stride)).clamp(min=0)
        return int((signal[following] <= STEEPEST * signal).nonzero()[-1])

    def step(
        self, prediction: Sample, noisy: Sample, timestep: Timesteps, following: Timesteps, eta: float, noise: Sample
    ) -> Sample:
        """One DDIM step (Song et al. 2021, eq. 12).

        Where the scheduler clips, it does so as diffusers does: at eta 0 (DDIMScheduler) the direction keeps the raw
        prediction; above, it is that of the clipped image, which at eta 1 gives the posterior mean of DDPMScheduler.
        """
        signal, sigma = self.signal_and_noise(timestep, noisy)
        clean, direction = self.clean_and_noise(prediction, noisy, timestep)
        if self.clip_sample:
            clean = clean.clamp(-self.clip_sample_range, self.clip_sample_range)
            if eta > 0:
                direction = (noisy - signal * clean) / sigma
        alpha, following = self.alphas_cumprod[timestep.cpu()], following.cpu()
        alpha_next = torch.where(following >= 0, self.alphas_cumprod[following.clamp(min=0)], torch.ones_like(alpha))
        spread = eta * ((1 - alpha_next) / (1 - alpha) * (1 - alpha / alpha_next)).clamp(min=0).sqrt()
        kept = (1 - alpha_next - spread**2).clamp(min=0).sqrt()
        image, held, fresh = (as_factor(value, noisy) for value in (alpha_next.sqrt(), kept, spread))
        return image * clean + held * direction + fresh * noise


def _check_numbers(schedule: Mapping[str, Any]) -> None:
    check_steps(schedule.get("num_train_timesteps"))
    for key in ("beta_start", "beta_end"):
        if not is_number(schedule.get(key)):
            raise ValueError(f"{key} {schedule.get(key)!r} is not a number")
    betas = schedule.get("trained_betas")
    if betas is not None and not (isinstance(betas, (list, tuple)) and all(map(is_number, betas))):
        raise ValueError("trained_betas are no list of numbers")
