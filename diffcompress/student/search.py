"""The search for knob values of U-Nets: depth by rule, widths near their ideal, the last percent by the fine knob.

The ideal widths balance the parameters over the resolutions (docs/decisions/0011), none wider than the teacher's; those
of rule "proportional" are one share of the teacher's.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from diffcompress.families.base import Config, Family, Knob, Variant
from diffcompress.families.shapes import shapes
from diffcompress.student import knob_values
from diffcompress.student.size import SizePolynomial

TOLERANCE = 0.01
# From this ratio up, students first lose layers and keep their width (exact layers are inherited); below, width goes.
DEPTH_FIRST = 0.35
# Of shares of the parameters by resolution: a level's falls with the root of its side.
TILT = -0.25
# A student's multiply-accumulates are at most so many times its parameters, each in shares of the teacher's. The search
# knows those of convolutions and linear layers alone, and aims a little lower.
MOST_WORK, AIM = 8.0, 7.0
# Rounds of the fixed point that finds the ideal widths, and how much of the way each goes.
ROUNDS, DAMPING = 60, 0.35
Depth = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Candidate:
    """choice: a value for every knob; error: relative, of the parameter count; cost: see Variant.cost."""

    choice: dict[str, int]
    error: float
    cost: float

    @property
    def fits(self) -> bool:
        return abs(self.error) <= TOLERANCE


@dataclass
class Search:
    """Students of `config` with `target` parameters, a share `ratio` of the teacher's.

    widths: "balanced" over the resolutions, or "proportional", one share of all of the teacher's widths; work: what is
    aimed at, see MOST_WORK.
    """

    family: Family
    config: Config
    variants: tuple[Variant, ...]
    target: float
    ratio: float
    widths: Literal["balanced", "proportional"] = "balanced"
    work: float = AIM
    polynomials: dict[Depth, list[SizePolynomial]] = field(default_factory=dict)
    ideals: dict[Depth, np.ndarray] = field(default_factory=dict)

    def candidates(self) -> Iterator[list[Candidate]]:
        """For each depth, best first, the best candidate of every variant (the nearest in size where none fits)."""
        for depth in self.depths():
            yield [self.best(variant, depth) for variant in self.variants]

    def depths(self) -> list[Depth]:
        """Depth settings, best first.

        Large students lose depth before width: repeats inside layers, then layers. Smaller ones keep their layers until
        width would get too low, with as many repeats inside, relative to the teacher's, as they have width.
        """
        knobs = [knob for knob in self.variants[-1].knobs if knob.kind == "depth"]
        outer = list(itertools.product(*([(knob.name, value) for value in reversed(knob.values)] for knob in knobs)))
        inner = self.inner()
        options = [(*setting, *repeats) for setting in outer for repeats in inner]
        if self.ratio >= DEPTH_FIRST:
            path = [(*outer[0], *repeats) for repeats in inner] + [(*setting, *inner[-1]) for setting in outer[1:]]
            # The sizes fall along the path: the last that is large enough.
            first = path[max(0, bisect.bisect_right(path, -self.target, key=lambda option: -self.full(option)) - 1)]
        else:
            narrow = np.array([knob.narrow for knob in _moving(self.variants[-1])])
            balanced = [(*setting, *self.balanced(setting, inner)) for setting in outer]
            wide = [option for option in balanced if (self.ideal(option) >= narrow).all()]
            first = wide[0] if wide else balanced[-1]
        return [first, *(option for option in options if option != first)]

    def inner(self) -> list[Depth]:
        """Settings of the repeats inside layers, shrinking together from the teacher's to the fewest."""
        knobs = [knob for knob in self.variants[-1].knobs if knob.kind == "inner"]
        shares = sorted({value / knob.teacher for knob in knobs for value in knob.values} | {1.0}, reverse=True)
        settings = (tuple((k.name, max(k.values[0], round(share * k.teacher))) for k in knobs) for share in shares)
        return list(dict.fromkeys(settings))

    def balanced(self, setting: Depth, inner: list[Depth]) -> Depth:
        """The one of `inner` (descending) that leaves as large a share of the repeats as of the width."""
        teacher = {knob.name: knob.teacher for knob in self.variants[-1].knobs}

        def excess(repeats: Depth) -> float:
            depth = (*setting, *repeats)
            widths = [knob.teacher for knob in _moving(self.variants[-1])]
            scale = float(np.exp(np.log(self.ideal(depth) / widths).mean()))
            logs = [math.log((value + 0.5) / (scale * teacher[name] + 0.5)) for name, value in repeats]
            return sum(logs)

        # Fewer repeats leave more width: excess falls along the list.
        place = bisect.bisect_left(range(len(inner)), 0.0, key=lambda index: -excess(inner[index]))
        near = inner[max(0, place - 1) : place + 1]
        return min(near, key=lambda repeats: abs(excess(repeats)))

    def full(self, depth: Depth) -> float:
        """Parameters at the teacher's widths."""
        return float(self.polynomial(depth)(np.array([[knob.teacher for knob in _moving(self.variants[-1])]]))[0])

    def polynomial(self, depth: Depth) -> SizePolynomial:
        """Parameters as a function of the moving knobs; norm groups and head sizes do not count."""
        return self._polynomials(depth)[-1]

    def _polynomials(self, depth: Depth) -> list[SizePolynomial]:
        """Parameters at the resolutions of each width knob, and last those of all tensors."""
        if depth not in self.polynomials:
            variant = self.variants[-1]
            knobs = _moving(variant)
            steps = [knob.values.step for knob in knobs]
            owners = [knob.modules for knob in knobs if knob.kind == "width"]

            @functools.cache
            def counts(values: tuple[int, ...]) -> list[int]:
                choice = {**variant.fixed, **dict(depth), **_named(knobs, values)}
                student = self.family.shrunk_config(self.config, choice)
                sizes = [
                    (rule.student, math.prod(rule.shape)) for rule in self.family.tensor_rules(student, student).rules
                ]
                parts = [sum(size for name, size in sizes if name.startswith(owner)) for owner in owners]
                return [*parts, sum(size for _, size in sizes)]

            # Far apart: two equal neighbouring widths would change which tensors exist.
            centre = [64 * (number + 1) * math.lcm(*steps) for number in range(len(steps))]
            self.polynomials[depth] = [
                SizePolynomial.fit(functools.partial(_part, counts, part), centre, steps)
                for part in range(len(owners) + 1)
            ]
        return self.polynomials[depth]

    def scale(self, depth: Depth) -> float:
        """The common factor on all knobs that gives the target at this depth, if they were real numbers; else 0."""
        teacher = np.array([[float(knob.teacher) for knob in _moving(self.variants[-1])]])
        factor = float(self.polynomial(depth).roots(0 * teacher, teacher, self.target)[0])
        return factor if math.isfinite(factor) else 0.0

    def ideal(self, depth: Depth) -> np.ndarray:
        """What the moving knobs should be `[knobs]`, if they were real numbers."""
        if depth not in self.ideals:
            teacher = np.array([float(knob.teacher) for knob in _moving(self.variants[-1])])
            start = max(self.scale(depth), 1e-3) * teacher
            self.ideals[depth] = start if self.widths == "proportional" else self._fast_enough(depth, start, teacher)
        return self.ideals[depth]

    def _fast_enough(self, depth: Depth, start: np.ndarray, teacher: np.ndarray) -> np.ndarray:
        """Balanced widths, or as near to them as leaves a student clearly faster than its teacher."""
        for tilt in np.arange(TILT, 1.0, 0.05):
            values = self._balanced(depth, start, teacher, tilt)
            if self._work(depth, values[None])[0] <= 1:
                break
        return values

    def _work(self, depth: Depth, points: np.ndarray) -> np.ndarray:
        """Multiply-accumulates `[N]` of all convolutions and linear layers, in shares of the most that are welcome."""
        *parts, _ = self._polynomials(depth)
        pixels = [float(np.mean([0.25**level for level in knob.levels])) for knob in _widths(self.variants[-1])]
        done = sum(part(points) * share for part, share in zip(parts, pixels, strict=True))
        return np.asarray(done / (self.work * self.ratio * np.dot(self._teacher_parts, pixels)))

    def aiming_lower(self, choice: dict[str, int], work: float) -> Search:
        """The search that should find a student of less than MOST_WORK, where that of `choice` turned out to do
        `work`."""
        variant = self.variants[-1]
        depth = tuple((knob.name, choice[knob.name]) for knob in variant.knobs if knob.kind in ("depth", "inner"))
        point = np.array([[choice[knob.name] for knob in _moving(variant)]])
        known = self.work * self._work(depth, point)[0]
        return replace(self, work=min(self.work, known) * AIM / work, ideals={})

    @functools.cached_property
    def _teacher_parts(self) -> list[int]:
        """The teacher's parameters at the resolutions of each width knob."""
        teacher = shapes(self.family.class_name, self.config)
        return [teacher.elements_of(knob.modules) for knob in _widths(self.variants[-1])]

    def _balanced(self, depth: Depth, start: np.ndarray, teacher: np.ndarray, tilt: float) -> np.ndarray:
        """Widths with 4^tilt times as many parameters at each resolution as at the next finer one, none wider than the
        teacher's: what a level at its teacher's width cannot take goes to the others. The fine knob keeps the mean
        share of the widths."""
        knobs = _moving(self.variants[-1])
        width = np.array([knob.kind == "width" for knob in knobs])
        weight = np.array([sum(4.0 ** (tilt * level) for level in knob.levels) for knob in _widths(self.variants[-1])])
        *parts, total = self._polynomials(depth)
        values = start.copy()
        for _ in range(ROUNDS):
            sizes = np.array([part(values[None])[0] for part in parts])
            full = values[width] >= teacher[width]
            spent = float(total(values[None])[0]) - sizes.sum() + sizes[full].sum()
            share = max((self.target - spent) / max(weight[~full].sum(), 1e-9), 1.0)
            # A level that is full may turn out too large for the others' share.
            wanted = np.where(full & (sizes < share * weight), np.inf, share * weight)
            step = np.clip(wanted / np.maximum(sizes, 1.0), 0.25, 4.0) ** DAMPING
            values[width] = np.clip(values[width] * step, 1.0, teacher[width])
            values[~width] = teacher[~width] * np.exp(np.log(values[width] / teacher[width]).mean())
        return values

    def best(self, variant: Variant, depth: Depth) -> Candidate:
        knobs, ideal = _moving(variant), self.ideal(depth)
        polynomial = self.polynomial(depth)
        points = knob_values.candidates(polynomial, knobs, ideal, self.target)
        error = (polynomial(points) - knob_values.shortcuts(points, knobs)) / self.target - 1
        cost = variant.cost + knob_values.imbalance(points, knobs, ideal) + 5 * np.abs(error)
        if self.widths == "balanced":
            cost += 5 * np.maximum(0, np.log(self._work(depth, points)))
        else:
            cost += knob_values.lost_shortcuts(points, knobs)
        fits = np.abs(error) <= TOLERANCE
        chosen = np.argmin(np.where(fits, cost, np.inf)) if fits.any() else np.argmin(np.abs(error))
        choice = {**variant.fixed, **dict(depth), **_named(knobs, points[chosen])}
        return Candidate(choice, float(error[chosen]), float(cost[chosen]))


def _part(counts: Callable[[tuple[int, ...]], list[int]], part: int, values: Sequence[int]) -> int:
    return counts(tuple(values))[part]


def _widths(variant: Variant) -> list[Knob]:
    return [knob for knob in variant.knobs if knob.kind == "width"]


def _moving(variant: Variant) -> list[Knob]:
    """The knobs of the polynomial: widths, then the fine one."""
    return sorted(
        (knob for knob in variant.knobs if knob.kind in ("width", "fine")), key=lambda knob: knob.kind == "fine"
    )


def _named(knobs: list[Knob], values: Sequence[int] | np.ndarray) -> dict[str, int]:
    return {knob.name: int(value) for knob, value in zip(knobs, values, strict=True)}
