"""The search for transformers: one width and the depth of each stack, shrunk alike.

Parameters are a quadratic of the width and linear in each depth, nearly or exactly: a few shallow builds on the meta
device give that polynomial, and the best candidates by it are built and counted for certain, best first.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from diffcompress.families.base import Config, Family, Knob, Variant
from diffcompress.student.search import TOLERANCE, Candidate

# With the teacher's head size and a width that is a multiple of 16 a student may be this far off.
KEPT_TOLERANCE, KEPT_MULTIPLE = 0.05, 16
# Fused attention takes heads that are a multiple of this; of less than half the teacher's size there would be many.
HEAD_MULTIPLE = 8
# Width and depth shrink by shares that differ by at most this factor, where that is possible.
BALANCED = math.log(1.8)
# By this much, rather than with heads that attention kernels do not like.
LOOSE = math.log(2.4)
# Channels of a wide enough student, in values of a token (docs/decisions/0008).
ROOM = 1.5
# So much more may a student cost that is preferred (docs/families.md, shapes that an original layout can say).
FREE = 0.2
# Builds at most, for one target.
MOST_BUILDS = 30


@dataclass
class StackSearch:
    """Students of `config` with `target` parameters.

    count: the exact parameters of a choice, from a build; preferred: whether a choice is welcome beyond its cost.
    """

    family: Family
    config: Config
    variants: tuple[Variant, ...]
    target: float
    count: Callable[[Mapping[str, int]], int]
    preferred: Callable[[Mapping[str, int]], bool] = field(default=lambda choice: False)

    def best(self) -> Candidate | None:
        """The most balanced student within tolerance, None if there is none: one that is wide enough if there is any,
        else one that holds a token. Its error is exact."""
        return self._best(self.wide_enough) or self._best(self.token_values) or self._best(0)

    @cached_property
    def wide_enough(self) -> int:
        """Half as many channels again as a token has values. The last norm takes mean and scale from every token; only
        channels to spare can carry them past it. No more is asked than the teacher itself has."""
        return min(math.ceil(ROOM * self._values()), self._width())

    @cached_property
    def token_values(self) -> int:
        """The values of one token. A narrower student cannot pass them on: it loses part of the noise that it is to
        predict, at every noise level, and its samples stay noise. No more is asked than the teacher itself has."""
        return min(self._values(), self._width())

    def _values(self) -> int:
        shape = self.family.sample_shape(self.config)
        return math.prod(shape) // self.family.num_tokens(self.config, shape)

    def width_of(self, candidate: Candidate) -> int:
        """Channels of a token inside the student."""
        width, _ = _knobs(self.variants[0])
        return candidate.choice[width.name] * candidate.choice["head_dim"]

    def nearest(self) -> Candidate | None:
        """The student nearest in size, whatever its balance, of those that are wide enough if there are any; None where
        there is no student at all. Its error is exact."""
        return self._nearest(self.wide_enough) or self._nearest(self.token_values) or self._nearest(0)

    def _best(self, narrowest: int) -> Candidate | None:
        kept = self.variants[:1]
        half = kept[0].fixed["head_dim"] / 2
        fused = tuple(
            v for v in self.variants if v.fixed["head_dim"] % HEAD_MULTIPLE == 0 and v.fixed["head_dim"] >= half
        )
        for variants, tolerance, multiple, limit in (
            (kept, KEPT_TOLERANCE, KEPT_MULTIPLE, BALANCED),
            (fused, TOLERANCE, HEAD_MULTIPLE, BALANCED),
            (kept if kept[0] in fused else (), KEPT_TOLERANCE, KEPT_MULTIPLE, LOOSE),
            (self.variants, TOLERANCE, 1, BALANCED),
            (kept, KEPT_TOLERANCE, KEPT_MULTIPLE, math.inf),
            (self.variants, TOLERANCE, 1, math.inf),
        ):
            reached = self._candidates(variants, multiple, limit, 2 * tolerance + 0.02, narrowest)
            ranked = sorted(reached, key=lambda c: c.cost)
            found = self._first(ranked, tolerance)
            if found is not None:
                free = [c for c in ranked if c.cost <= found.cost + FREE and self.preferred(c.choice)]
                return self._first(free, tolerance) or found
        nearest = self._nearest(narrowest)
        return nearest if nearest and abs(nearest.error) <= TOLERANCE else None

    def _nearest(self, narrowest: int) -> Candidate | None:
        ranked = sorted(self._candidates(self.variants, 1, math.inf, math.inf, narrowest), key=lambda c: abs(c.error))
        return min((self._exact(c) for c in ranked[:MOST_BUILDS]), key=lambda c: abs(c.error), default=None)

    def _exact(self, candidate: Candidate) -> Candidate:
        return replace(candidate, error=self.count(candidate.choice) / self.target - 1)

    def _first(self, ranked: list[Candidate], tolerance: float) -> Candidate | None:
        """Build candidates by what the polynomial says, best first, until one is as it should be."""
        correction, builds = 1.0, 0
        for candidate in ranked:
            # Where the polynomial is off, it is off alike for students of like size.
            if abs((1 + candidate.error) * correction - 1) > tolerance:
                continue
            exact = self._exact(candidate)
            if abs(exact.error) <= tolerance:
                return exact
            correction, builds = (1 + exact.error) / (1 + candidate.error), builds + 1
            if builds == MOST_BUILDS:
                break
        return None

    def _candidates(
        self, variants: tuple[Variant, ...], multiple: int, limit: float, reach: float, narrowest: int
    ) -> Iterator[Candidate]:
        polynomial = self._polynomial
        for variant in variants:
            width, depths = _knobs(variant)
            head_dim = variant.fixed["head_dim"]
            fits = (h for h in width.values if h * head_dim % multiple == 0 and h * head_dim >= narrowest)
            heads = np.array(list(fits), dtype=float)
            if not len(heads):
                continue
            grid = np.array(list(itertools.product(heads, *(knob.values for knob in depths))), dtype=float)
            channels = grid[:, 0] * head_dim
            error = polynomial(channels, grid[:, 1:]) / self.target - 1
            off = _imbalance(channels / self._width(), grid[:, 1:], depths)
            # What keeps all of the teacher's width and depths is no student.
            whole = (channels == self._width()) & (grid[:, 1:] == [knob.teacher for knob in depths]).all(1)
            for index in np.flatnonzero((np.abs(error) <= reach) & (off <= limit) & ~whole):
                cost = variant.cost + off[index] + 4 * abs(error[index]) + (0.1 if channels[index] % 16 else 0.0)
                yield Candidate(_choice(variant, grid[index]), float(error[index]), float(cost))

    def _width(self) -> int:
        width, _ = _knobs(self.variants[0])
        return width.teacher * self.variants[0].fixed["head_dim"]

    def _built_widths(self) -> dict[int, dict[str, int]]:
        """Head size and heads of three widths, which tell a quadratic; of the teacher's head size if it has as many."""
        found: dict[int, dict[str, int]] = {}
        for variants in (self.variants[:1], self.variants):
            sizes = {
                heads * variant.fixed["head_dim"]: {**variant.fixed, "heads": heads}
                for variant in reversed(variants)
                for heads in _knobs(variant)[0].values
            }
            picked = {min(sizes, key=lambda size: abs(size - share * self._width())) for share in (0.15, 0.45, 0.9)}
            found = {size: sizes[size] for size in (picked if len(picked) == 3 else sorted(sizes)[:3])}
            if len(found) == 3:
                break
        return found

    @cached_property
    def _polynomial(self) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
        """Parameters `[N]` of widths `[N]` and depths `[N, stacks]`, least squares over some builds."""
        widths, (_, depths) = self._built_widths(), _knobs(self.variants[0])
        shallow = [sorted({knob.values[0], max(_near(knob, 0.3), *knob.values[:2])}) for knob in depths]
        base = [values[-1] for values in shallow]
        settings = [base] + [
            [*base[:i], value, *base[i + 1 :]] for i, values in enumerate(shallow) for value in values[:-1]
        ]
        points = [(width, *setting) for width in widths for setting in settings]
        counts = [self.count({**widths[p[0]], **_named(depths, p[1:])}) for p in points]
        grid = np.array(points, dtype=float)
        unit = self._width()

        def basis(channels: np.ndarray, layers: np.ndarray) -> np.ndarray:
            x = channels / unit
            powers = np.stack([np.ones_like(x), x, x * x][: len(widths)], 1)
            deep = np.concatenate([np.ones((len(layers), 1)), layers], 1)
            return (powers[:, :, None] * deep[:, None, :]).reshape(len(x), -1)

        values = np.array(counts, dtype=float)
        # Relative errors matter: weigh each build by its size.
        solution = np.linalg.lstsq(basis(grid[:, 0], grid[:, 1:]) / values[:, None], np.ones(len(values)), rcond=None)[
            0
        ]
        return lambda channels, layers: basis(channels, layers) @ solution


def _knobs(variant: Variant) -> tuple[Knob, list[Knob]]:
    (width,) = (knob for knob in variant.knobs if knob.kind == "width")
    return width, [knob for knob in variant.knobs if knob.kind == "depth"]


def _near(knob: Knob, share: float) -> int:
    return min(knob.values, key=lambda value: abs(value - share * knob.teacher))


def _named(depths: list[Knob], values: tuple[int, ...] | np.ndarray) -> dict[str, int]:
    return {knob.name: int(value) for knob, value in zip(depths, values, strict=True)}


def _choice(variant: Variant, row: np.ndarray) -> dict[str, int]:
    width, depths = _knobs(variant)
    return {**variant.fixed, width.name: int(row[0]), **_named(depths, row[1:])}


def _imbalance(width: np.ndarray, layers: np.ndarray, depths: list[Knob]) -> np.ndarray:
    """The largest distance, in log, between the share of width `[N]` and of each depth; half a layer is no distance."""
    off = np.zeros_like(width)
    for column, knob in enumerate(depths):
        ideal = np.maximum(width * knob.teacher, 1.0)
        off = np.maximum(off, np.abs(np.log((layers[:, column] + 0.5) / (ideal + 0.5))))
    return off
