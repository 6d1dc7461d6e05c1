"""Muon (Jordan 2024, https://kellerjordan.github.io/posts/muon/): momentum, made orthogonal before it is taken."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

MOMENTUM = 0.95
# Newton-Schulz: five rounds of a x + b (x x') x + c (x x')^2 x bring singular values from 1e-2 up to 0.7 .. 1.2.
ROUNDS, A, B, C = 5, 3.4445, -4.7750, 2.0315


class Muon(torch.optim.Optimizer):
    """The optimizer of weights that act as matrices: `[rows, ...]`, flattened behind the rows. No other parameters.

    `torch.optim.Muon` orthogonalises in bfloat16. Its rounding, amplified five hundred times, fills the directions that
    have no gradient, so that one and two processes part after one step. Here it is float32, and weights of one
    shape go together. Updates are as large as AdamW's, so that both take learning rates of one size (arXiv 2502.16982).
    """

    def __init__(self, weights: Iterable[Tensor], weight_decay: float = 0.0) -> None:
        super().__init__(weights, {"lr": 1e-3, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            alike: dict[torch.Size, list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if "moment" not in state:
                    state["moment"] = torch.zeros_like(weight)
                moment = state["moment"]
                moment.mul_(MOMENTUM).add_(weight.grad)
                ahead = weight.grad.add(moment, alpha=MOMENTUM).flatten(1)
                alike[ahead.shape].append((weight, ahead))
            for shape, found in alike.items():
                size = group["lr"] * 0.2 * max(shape) ** 0.5
                for (weight, _), move in zip(found, orthogonal(torch.stack([m for _, m in found])), strict=True):
                    weight.mul_(1 - group["lr"] * group["weight_decay"]).sub_(move.view_as(weight), alpha=size)


def orthogonal(matrices: Tensor) -> Tensor:
    """`[N, rows, columns]`, each with its singular values near 1; those below a thousandth of its norm stay small."""
    wide = matrices.shape[1] <= matrices.shape[2]
    x = (matrices if wide else matrices.mT).float()
    x = x / x.flatten(1).norm(dim=1).clamp(min=1e-12)[:, None, None]
    for _ in range(ROUNDS):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=B, alpha=C), x, beta=A)
    return x if wide else x.mT
