"""Exponential moving average of the student's weights; what is exported."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Ema:
    """Half-life in optimizer steps. Early on the average is over about a tenth of the steps so far, so that the random
    start is forgotten: decay = min(2^(-1/half_life), (1 + step) / (10 + step))."""

    def __init__(self, model: nn.Module, half_life_steps: float) -> None:
        self.decay = 0.5 ** (1 / half_life_steps) if half_life_steps > 0 else 0.0
        self.tensors: dict[str, Tensor] = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights after optimizer step number `step` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            average = self.tensors[name]
            if average.is_floating_point():
                average.lerp_(value, 1 - decay)
            else:
                average.copy_(value)
