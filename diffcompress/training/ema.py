"""Exponential moving average of the student's weights; what is exported."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from diffcompress.training.sharding import Sharding


class Ema:
    """Half-life in optimizer steps. Early on the average is over about a tenth of the steps so far, so that the random
    start is forgotten: decay = min(2^(-1/half_life), (1 + step) / (10 + step))."""

    def __init__(self, model: nn.Module, half_life_steps: float, sharding: Sharding | None = None) -> None:
        """`model` stays on its device: its tensors are looked up once. sharding: who keeps which averages; None: this
        process, of all."""
        self.decay = 0.5 ** (1 / half_life_steps) if half_life_steps > 0 else 0.0
        whole: dict[str, Tensor] = model.state_dict(keep_vars=True)
        self.shapes = {name: value.shape for name, value in whole.items()}
        self._followed = {name: value for name, value in whole.items() if sharding is None or sharding.mine(value)}
        self.tensors = {name: value.detach().clone() for name, value in self._followed.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after optimizer step number `step` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        pairs = [(self.tensors[name], value) for name, value in self._followed.items()]
        averaged = [pair for pair in pairs if pair[0].is_floating_point()]
        copied = [pair for pair in pairs if not pair[0].is_floating_point()]
        if averaged:
            get_ema_multi_avg_fn(decay)(*map(list, zip(*averaged, strict=True)), None)
        if copied:
            torch._foreach_copy_([own for own, _ in copied], [value for _, value in copied])
