"""What every noise process answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from jaxtyping import Float, Real
from torch import Tensor

# Of what a scheduler's config counts or scales.
LARGEST = 1_000_000

# Checked under pytest: clean, noisy, noise or a prediction; a timestep for each sample; factors that multiply a sample.
Sample = Float[Tensor, "batch channels *spatial"]
Timesteps = Real[Tensor, " batch"]
Factor = Float[Tensor, "batch *ones"]
Columns = Real[Tensor, " columns"]
Grid = Real[Tensor, "steps columns"]


class NoiseProcess(ABC):
    """Timesteps, noisy inputs and conversions; see the package's first lines.

    sampler: name of the solver whose step `step` is; velocity: the prediction type that is one.
    """

    sampler: ClassVar[str]
    velocity: ClassVar[str]
    prediction_type: str
    num_timesteps: int

    @abstractmethod
    def same_as(self, other: NoiseProcess) -> bool:
        """Whether equal timesteps mean equal noise levels."""

    @abstractmethod
    def predicting(self, prediction_type: str) -> NoiseProcess:
        """The same noise under denoisers that predict something else; raises ValueError where there is nothing else."""

    @abstractmethod
    def at(self, share: Tensor) -> Tensor:
        """Timesteps at `share` in [0, 1) of the process, from clean to noise, evenly spread as sampling visits them."""

    @abstractmethod
    def share_of(self, timestep: Timesteps) -> Tensor:
        """Where in the process timesteps `[B]` are: what `at` makes them of, as far as they tell."""

    @abstractmethod
    def draw_timesteps(self, count: int, generator: torch.Generator, scheme: str = "uniform") -> Columns:
        """`[count]` timesteps; "antithetic": pairs of one low and one high noise level."""

    @abstractmethod
    def signal_and_noise(self, timestep: Timesteps, like: Sample) -> tuple[Factor, Factor]:
        """The factors of clean sample and noise, shaped `[B, 1, ...]` to multiply `like` `[B, C, ...]`."""

    def noisy(self, clean: Sample, noise: Sample, timestep: Timesteps) -> Sample:
        signal, sigma = self.signal_and_noise(timestep, clean)
        return signal * clean + sigma * noise

    @abstractmethod
    def target(self, clean: Sample, noise: Sample, timestep: Timesteps) -> Sample:
        """What the plain diffusion loss compares a prediction with."""

    @abstractmethod
    def clean_and_noise(self, prediction: Sample, noisy: Sample, timestep: Timesteps) -> tuple[Sample, Sample]:
        """The clean image and the noise that a prediction implies, without clipping."""

    def converted(self, prediction: Sample, noisy: Sample, timestep: Timesteps, other: NoiseProcess) -> Sample:
        """A prediction as a denoiser of `other`, which has the same noise levels, would tell it: exact, unclipped."""
        if other.prediction_type == self.prediction_type:
            return prediction
        return other.target(*self.clean_and_noise(prediction, noisy, timestep), timestep)

    @abstractmethod
    def grid(self, num_steps: int, offset: Columns | None = None) -> Grid:
        """Descending timesteps `[num_steps, B]` of a sampling run; `offset` `[B]` in [0, 1) shifts columns."""

    @abstractmethod
    def step(
        self, prediction: Sample, noisy: Sample, timestep: Timesteps, following: Timesteps, eta: float, noise: Sample
    ) -> Sample:
        """One sampling step from `timestep` to `following` (negative: clean), both `[B]`.

        eta: from 0 (no noise) to 1 (ancestral).
        """


def as_factor(value: Timesteps, like: Sample) -> Factor:
    """`[B]` as `[B, 1, ...]`, to multiply `like` `[B, C, ...]`; made on the CPU, as not every device has float64."""
    return value.to(like.dtype).to(like.device).view((-1,) + (1,) * (like.dim() - 1))


def is_number(value: object) -> bool:
    """Whether a config's value is a finite number, and no truth value."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < float("inf")


def check_steps(steps: object) -> None:
    """Raise ValueError for a num_train_timesteps that is none."""
    if not isinstance(steps, int) or isinstance(steps, bool) or not 2 <= steps <= LARGEST:
        raise ValueError(f"num_train_timesteps {steps!r} is not a number of timesteps from 2 to {LARGEST:,}")
