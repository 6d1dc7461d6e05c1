"""What every noise process answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

# Of what a scheduler's config counts or scales.
LARGEST = 1_000_000


class NoiseProcess(ABC):
    """Timesteps, noisy inputs and conversions; see the package's first lines. Timestep tensors are `[B]`.

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
    def draw_timesteps(self, count: int, generator: torch.Generator, scheme: str = "uniform") -> Tensor:
        """`[count]` timesteps; "antithetic": pairs of one low and one high noise level."""

    @abstractmethod
    def signal_and_noise(self, timestep: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """The factors of clean sample and noise, shaped `[B, 1, ...]` to multiply `like` `[B, C, ...]`."""

    def noisy(self, clean: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        signal, sigma = self.signal_and_noise(timestep, clean)
        return signal * clean + sigma * noise

    @abstractmethod
    def target(self, clean: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """What the plain diffusion loss compares a prediction with."""

    @abstractmethod
    def clean_and_noise(self, prediction: Tensor, noisy: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """The clean image and the noise that a prediction implies, without clipping."""

    def converted(self, prediction: Tensor, noisy: Tensor, timestep: Tensor, other: NoiseProcess) -> Tensor:
        """A prediction as a denoiser of `other`, which has the same noise levels, would tell it: exact, unclipped."""
        if other.prediction_type == self.prediction_type:
            return prediction
        return other.target(*self.clean_and_noise(prediction, noisy, timestep), timestep)

    @abstractmethod
    def grid(self, num_steps: int, offset: Tensor | None = None) -> Tensor:
        """Descending timesteps `[num_steps, B]` of a sampling run; `offset` `[B]` in [0, 1) shifts columns."""

    @abstractmethod
    def step(
        self, prediction: Tensor, noisy: Tensor, timestep: Tensor, following: Tensor, eta: float, noise: Tensor
    ) -> Tensor:
        """One sampling step from `timestep` to `following` (negative: clean), both `[B]`.

        eta: from 0 (no noise) to 1 (ancestral).
        """


def as_factor(value: Tensor, like: Tensor) -> Tensor:
    """`[B]` as `[B, 1, ...]`, to multiply `like` `[B, C, ...]`; made on the CPU, as not every device has float64."""
    return value.to(like.dtype).to(like.device).view((-1,) + (1,) * (like.dim() - 1))


def is_number(value: object) -> bool:
    """Whether a config's value is a finite number, and no truth value."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < float("inf")


def check_steps(steps: object) -> None:
    """Raise ValueError for a num_train_timesteps that is none."""
    if not isinstance(steps, int) or isinstance(steps, bool) or not 2 <= steps <= LARGEST:
        raise ValueError(f"num_train_timesteps {steps!r} is not a number of timesteps from 2 to {LARGEST:,}")
