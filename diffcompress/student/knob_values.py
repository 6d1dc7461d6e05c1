"""Which values of a U-Net's knobs are worth a look, and what each costs, given their ideal.

Points are knob values `[N, knobs]`: the widths, then the fine knob.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from diffcompress.families.base import Knob
from diffcompress.student.size import SizePolynomial

# A width this far (in log) off its ideal counts three times.
BALANCED = math.log(1.35)
# A fine knob below this share of its ideal counts much more.
SMALLEST_FINE = 0.3
# Width settings looked at per variant.
NUM_SETTINGS = 4000


def candidates(polynomial: SizePolynomial, knobs: list[Knob], ideal: np.ndarray, target: float) -> np.ndarray:
    """Knob values `[N, knobs]` worth a look: widths near their ideal, each with fine values that hit the target."""
    widths, fine = [knob for knob in knobs if knob.kind == "width"], [knob for knob in knobs if knob.kind == "fine"]
    number = max(2, int(NUM_SETTINGS ** (1 / len(widths))))
    near = [_nearest(knob, value, number) for knob, value in zip(widths, ideal[: len(widths)], strict=True)]
    grid = np.array(list(itertools.product(*near)), dtype=float)
    if not fine:
        return grid
    (knob,) = fine
    start = np.concatenate([grid, np.zeros((len(grid), 1))], axis=1)
    roots = polynomial.roots(start, np.eye(len(knobs))[-1:], target + shortcuts(start, knobs))
    wanted = np.nan_to_num(roots, nan=knob.values[0])
    found = []
    for value, step in ((wanted, 1), (wanted, 4), (wanted, 8), (np.full(len(grid), ideal[-1]), 8)):
        points = start.copy()
        points[:, -1] = np.clip(np.round(value / step) * step, knob.values[0], knob.values[-1])
        found.append(points)
    return np.concatenate(found)


def shortcuts(points: np.ndarray, knobs: list[Knob]) -> np.ndarray:
    """Parameters `[N]` of the shortcut convolutions that are not there, because neighbouring widths are equal."""
    widths = points[:, [knob.kind == "width" for knob in knobs]]
    lower = widths[:, 1:]
    return (np.equal(widths[:, :-1], lower) * (lower**2 + lower)).sum(-1)


def _nearest(knob: Knob, ideal: float, number: int) -> list[int]:
    """Values near `ideal`; half of them such as kernels like best, where there are any."""

    def best(values: Sequence[int], count: int) -> list[int]:
        return sorted(values, key=lambda value: abs(math.log(value / ideal)))[:count]

    liked = [value for value in knob.values if value >= 64 and value % _multiple(value) == 0]
    return list(dict.fromkeys([*best(liked, number // 2), *best(knob.values, number)]))[:number]


def _multiple(width: np.ndarray | int) -> np.ndarray:
    """What kernels like a width to be a multiple of: vector registers hold 8 channels, tensor cores more."""
    width = np.asarray(width)
    return np.select([width >= 256, width >= 64, width >= 16], [64, 32, 8], 1)


def imbalance(points: np.ndarray, knobs: list[Knob], ideal: np.ndarray) -> np.ndarray:
    """How far the knobs are from their ideal `[N]`, plus small amends for awkward numbers."""
    is_width = np.array([knob.kind == "width" for knob in knobs])
    off = np.abs(np.log(points / ideal))
    worst = off[:, is_width].max(-1)
    cost = worst + 0.5 * off[:, is_width].mean(-1) + 2 * np.maximum(0, worst - BALANCED)
    cost += 0.2 * off[:, ~is_width].sum(-1)
    # Little is left of what a fine knob stands for (the timestep's embedding) once it is far behind the widths.
    cost += 2 * np.maximum(0, np.log(SMALLEST_FINE * ideal[~is_width] / points[:, ~is_width])).sum(-1)
    return cost + _awkward(points, knobs)


def _awkward(points: np.ndarray, knobs: list[Knob]) -> np.ndarray:
    """Amends `[N]` for numbers that kernels do not like, other than the teacher's own."""
    is_width = np.array([knob.kind == "width" for knob in knobs])
    odd = (points % _multiple(points) != 0) & (points != [knob.teacher for knob in knobs])
    # Of the fine knob too, but nothing is computed with it at every pixel.
    wide, narrow = odd & is_width & (points >= 64), odd & is_width & (points < 64)
    cost = 0.02 * odd.sum(-1) + 0.08 * narrow.sum(-1) + 0.3 * wide.sum(-1)
    return np.asarray(cost + 0.1 * (wide & (points % 16 != 0)).sum(-1))


def lost_shortcuts(points: np.ndarray, knobs: list[Knob]) -> np.ndarray:
    """Amends `[N]` for widths that differ in the teacher and not, or the other way, in the student."""
    is_width = np.array([knob.kind == "width" for knob in knobs])
    teacher = np.array([knob.teacher for knob in knobs])
    order = np.sign(np.diff(teacher[is_width]))
    return 0.5 * (np.sign(np.diff(points[:, is_width], axis=1)) != order).sum(-1)
