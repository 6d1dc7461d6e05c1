"""From the fitted lines to a loss: coarse term, fine term and the gate between them.

"LIFT and PLACE", Han, Yeo, Yoo, CVPR 2026, arXiv 2605.19729.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .fit import Line, PerGroup
from .reduction import PerSample, Scalar, one_of, raised, root

Norm = Literal["l1", "squared", "relative", "explained"]
Fine = Literal["squared", "l1", "relative"]
Gate = Literal["global", "per_sample", "soft"]
ReduceMean = Callable[[Tensor], Tensor]


class LossTerms(NamedTuple):
    """What LIFT and PLACE return. `loss`, `coarse` and `fine` carry gradients, the rest is for the log.

    `loss = coarse_weight * coarse + fine_weight * fine` where the power is 1; with the per-sample gate `fine_weight` is
    the mean of the weights, so that equation holds for each sample alone.
    """

    loss: Scalar
    coarse: Scalar  # distance of the lines from the identity, >= 0
    fine: Scalar  # residual around the lines, >= 0, before the gate
    fine_weight: Scalar  # the gate w, in [0, 1]
    slope: PerGroup  # 1 when the student is right
    intercept: PerGroup  # 0 when the student is right, in units of the outputs


def identity(value: Tensor) -> Tensor:
    """The `reduce_mean` of a single process."""
    return value


def weigh(
    line: Line,
    share: Tensor,
    factor: int,
    *,
    norm: Norm,
    fine: Fine,
    gate: Gate,
    coarse_weight: float,
    power: float,
    reduce_mean: ReduceMean,
) -> LossTerms:
    """`L = rho(a - 1) + rho(b) + w * residual^2` with `w = 1 - min(1, mean|a - 1| + mean|b|)`, w without gradient.

    `share` [groups]: each group's part of the elements, summing to 1. `factor`: 1, or the elements per sample for
    reduction `sum`. `fine="relative"`: the root of each sample's mean squared residual, in place of the mean squared
    residual; "l1" expects lines fitted with the mean absolute one. `norm="relative"`: see `_relative`.
    `norm="explained"`: the mean square of what the line explains, in place of rho: with the squared residual and an
    open gate both terms add up to the mean squared error. `gate="soft"`: `w = 1 / (1 + mean|a - 1| + mean|b|)`, the
    same to first order, which never shuts. Each sample's loss is raised to `power` before the mean over samples.
    """
    one_of("norm", norm, Norm)
    one_of("fine", fine, Fine)
    one_of("gate", gate, Gate)

    def per_sample(values: PerGroup) -> PerSample:
        return (values * share).sum(-1).mean(-1)

    distance = per_sample(line.tilt.abs() + line.intercept.abs())
    if norm == "l1":
        coarse = distance
    elif norm == "squared":
        coarse = per_sample(line.tilt.square() + line.intercept.square())
    elif norm == "explained":
        coarse = per_sample(line.explained)
    else:
        coarse = per_sample(_relative(line, fine))
    residual = per_sample(line.residual)
    residual = root(residual) if fine == "relative" else residual

    off = distance.detach()
    off = off if gate == "per_sample" else reduce_mean(off.mean())
    weight = 1 / (1 + off) if gate == "soft" else 1 - off.clamp(max=1)
    return LossTerms(
        loss=factor * raised(coarse_weight * coarse + weight * residual, power).mean(),
        coarse=factor * coarse.mean(),
        fine=factor * residual.mean(),
        fine_weight=weight.mean(),
        slope=1 + line.tilt.detach(),
        intercept=line.intercept.detach(),
    )


def _relative(line: Line, fine: Fine) -> PerGroup:
    """`sqrt(E + sg(r)^2) - sg(r)`: what the line explains (E, a mean square) against the size r of what it leaves.

    A group's slope and intercept move all of its elements together, so that with rho = |.| the smallest of them pulls
    on the weights many times harder than the whole residual does. Here they pull in proportion to their size while
    that is below r, and as |.| does above. In units of the outputs; groups of one element give their absolute error.
    """
    size = (line.residual if fine == "l1" else root(line.residual)).detach()
    below = root(line.explained + size.square()) + size
    return line.explained / torch.where(below > 0, below, 1.0)
