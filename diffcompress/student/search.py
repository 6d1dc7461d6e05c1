"""The search for knob values: depth by rule, widths by balance, the last percent by the fine knob."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from diffcompress.families.base import Config, Family, Knob, Variant
from diffcompress.student.size import SizePolynomial

TOLERANCE = 0.01
# From this ratio up, students first lose layers and keep their width (exact layers are inherited); below, width goes.
DEPTH_FIRST = 0.35
# A width this far (in log) off the common scale counts three times.
BALANCED = math.log(1.35)
# A fine knob below this share of the common scale counts much more.
SMALLEST_FINE = 0.3
# Width settings looked at per variant.
NUM_SETTINGS = 4000

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
    """Students of `config` with `target` parameters, a share `ratio` of the teacher's."""

    family: Family
    config: Config
    variants: tuple[Variant, ...]
    target: float
    ratio: float
    polynomials: dict[Depth, SizePolynomial] = field(default_factory=dict)

    def candidates(self) -> Iterator[list[Candidate]]:
        """For each depth, best first, the best candidate of every variant (the nearest in size where none fits)."""
        for depth in self.depths():
            scale = max(self.scale(depth), 1e-3)
            yield [self.best(variant, depth, scale) for variant in self.variants]

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
            least = max((knob.narrow / knob.teacher for knob in _moving(self.variants[-1])), default=0.0)
            balanced = [(*setting, *self.balanced(setting, inner)) for setting in outer]
            wide = [option for option in balanced if self.scale(option) >= least]
            first = wide[0] if wide else balanced[-1]
        return [first, *(option for option in options if option != first)]

    def inner(self) -> list[Depth]:
        """Settings of the repeats inside layers, shrinking together from the teacher's to the fewest."""
        knobs = [knob for knob in self.variants[-1].knobs if knob.kind == "inner"]
        shares = sorted({value / knob.teacher for knob in knobs for value in knob.values} | {1.0}, reverse=True)
        settings = (tuple((k.name, max(k.values[0], round(share * k.teacher))) for k in knobs) for share in shares)
        return list(dict.fromkeys(settings))

    def balanced(self, setting: Depth, inner: list[Depth]) -> Depth:
        """Of `inner` (descending) the one that leaves as large a share of the repeats as of the width."""
        teacher = {knob.name: knob.teacher for knob in self.variants[-1].knobs}

        def excess(repeats: Depth) -> float:
            scale = max(self.scale((*setting, *repeats)), 1e-3)
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
        if depth not in self.polynomials:
            variant = self.variants[-1]
            knobs = _moving(variant)
            steps = [knob.values.step for knob in knobs]

            def count(values: Sequence[int]) -> int:
                choice = {**variant.fixed, **dict(depth), **_named(knobs, values)}
                student = self.family.shrunk_config(self.config, choice)
                return self.family.tensor_rules(student, student).num_elements

            # Far apart: two equal neighbouring widths would change which tensors exist.
            centre = [64 * (number + 1) * math.lcm(*steps) for number in range(len(steps))]
            self.polynomials[depth] = SizePolynomial.fit(count, centre, steps)
        return self.polynomials[depth]

    def scale(self, depth: Depth) -> float:
        """The common factor on all knobs that gives the target at this depth, if they were real numbers; else 0."""
        teacher = np.array([[float(knob.teacher) for knob in _moving(self.variants[-1])]])
        factor = float(self.polynomial(depth).roots(0 * teacher, teacher, self.target)[0])
        return factor if math.isfinite(factor) else 0.0

    def best(self, variant: Variant, depth: Depth, scale: float) -> Candidate:
        knobs = _moving(variant)
        polynomial = self.polynomial(depth)
        points = _points(polynomial, knobs, scale, self.target)
        error = (polynomial(points) - _shortcuts(points, knobs)) / self.target - 1
        cost = variant.cost + _imbalance(points, knobs, scale) + 5 * np.abs(error)
        fits = np.abs(error) <= TOLERANCE
        chosen = np.argmin(np.where(fits, cost, np.inf)) if fits.any() else np.argmin(np.abs(error))
        choice = {**variant.fixed, **dict(depth), **_named(knobs, points[chosen])}
        return Candidate(choice, float(error[chosen]), float(cost[chosen]))


def _moving(variant: Variant) -> list[Knob]:
    """The knobs of the polynomial: widths, then the fine one."""
    return sorted(
        (knob for knob in variant.knobs if knob.kind in ("width", "fine")), key=lambda knob: knob.kind == "fine"
    )


def _named(knobs: list[Knob], values: Sequence[int] | np.ndarray) -> dict[str, int]:
    return {knob.name: int(value) for knob, value in zip(knobs, values, strict=True)}


def _points(polynomial: SizePolynomial, knobs: list[Knob], scale: float, target: float) -> np.ndarray:
    """Knob values `[N, knobs]` worth a look: widths near the scale, each with fine values that hit the target."""
    widths, fine = [knob for knob in knobs if knob.kind == "width"], [knob for knob in knobs if knob.kind == "fine"]
    number = max(2, int(NUM_SETTINGS ** (1 / len(widths))))
    near = [_nearest(knob, scale * knob.teacher, number) for knob in widths]
    grid = np.array(list(itertools.product(*near)), dtype=float)
    if not fine:
        return grid
    (knob,) = fine
    start = np.concatenate([grid, np.zeros((len(grid), 1))], axis=1)
    roots = polynomial.roots(start, np.eye(len(knobs))[-1:], target + _shortcuts(start, knobs))
    wanted = np.nan_to_num(roots, nan=knob.values[0])
    found = []
    for value, step in ((wanted, 1), (wanted, 4), (wanted, 8), (np.full(len(grid), scale * knob.teacher), 8)):
        points = start.copy()
        points[:, -1] = np.clip(np.round(value / step) * step, knob.values[0], knob.values[-1])
        found.append(points)
    return np.concatenate(found)


def _shortcuts(points: np.ndarray, knobs: list[Knob]) -> np.ndarray:
    """Parameters `[N]` of the shortcut convolutions that are not there, because neighbouring widths are equal."""
    widths = points[:, [knob.kind == "width" for knob in knobs]]
    lower = widths[:, 1:]
    return (np.equal(widths[:, :-1], lower) * (lower**2 + lower)).sum(-1)


def _nearest(knob: Knob, ideal: float, number: int) -> list[int]:
    return sorted(knob.values, key=lambda value: abs(math.log(value / ideal)))[:number]


def _imbalance(points: np.ndarray, knobs: list[Knob], scale: float) -> np.ndarray:
    """How far the widths are from one common scale `[N]`, plus small amends for awkward numbers."""
    teacher = np.array([knob.teacher for knob in knobs])
    is_width = np.array([knob.kind == "width" for knob in knobs])
    off = np.abs(np.log(points / (scale * teacher)))
    worst = off[:, is_width].max(-1)
    cost = worst + 0.5 * off[:, is_width].mean(-1) + 2 * np.maximum(0, worst - BALANCED)
    cost += 0.2 * off[:, ~is_width].sum(-1)
    # Little is left of what a fine knob stands for (the timestep's embedding) once it is far behind the widths.
    cost += 2 * np.maximum(0, np.log(SMALLEST_FINE * scale * teacher[~is_width] / points[:, ~is_width])).sum(-1)
    # Widths that differ in the teacher should differ in the student, or shortcut convolutions get lost.
    order = np.sign(np.diff(teacher[is_width]))
    cost += 0.5 * (np.sign(np.diff(points[:, is_width], axis=1)) != order).sum(-1)
    multiple = np.where(points >= 256, 16, np.where(points >= 64, 8, np.where(points >= 16, 4, 1)))
    return cost + 0.02 * (points % multiple != 0).sum(-1)
