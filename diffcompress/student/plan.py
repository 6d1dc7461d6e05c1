"""Find the student: a diffusers config of the asked size, searched on the meta device; no weights are read."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from diffcompress.errors import DoesNotFitError, UsageError
from diffcompress.families.base import Config, Family, Knob, TensorRules, Variant
from diffcompress.recipe import StudentSection
from diffcompress.student.size import SizePolynomial, build, check_forward, file_bytes, num_parameters

TOLERANCE = 0.01
# From this ratio up, students first lose layers and keep their width (exact layers are inherited); below, width goes.
DEPTH_FIRST = 0.35
# A width this far (in log) off the common scale counts three times.
BALANCED = math.log(1.35)
CANDIDATES = 4000


@dataclass(frozen=True)
class StudentPlan:
    """What will be built: everything about the student but its weights.

    config: plain diffusers config; params, teacher_params: denoiser parameters without buffers; ratio: params /
    teacher_params; choice: knob values; notes: what a person should know about the shape, in plain sentences.
    """

    family: str
    teacher_config: dict[str, Any]
    config: dict[str, Any]
    params: int
    teacher_params: int
    requested_ratio: float
    choice: dict[str, int]
    notes: tuple[str, ...] = ()

    @property
    def ratio(self) -> float:
        return self.params / self.teacher_params

    def rules(self, family: Family) -> TensorRules:
        """Where each tensor of the student comes from."""
        return family.tensor_rules(self.teacher_config, self.config)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "ratio": self.ratio, "notes": list(self.notes)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> StudentPlan:
        values = {key: value for key, value in data.items() if key != "ratio"}
        return cls(**{**values, "notes": tuple(values["notes"])})


def plan(
    family: Family,
    config: Config,
    *,
    ratio: float | None = None,
    params: int | None = None,
    size: int | None = None,
    dtype: str | None = None,
    section: StudentSection | None = None,
) -> StudentPlan:
    """The student of `config` with `ratio` of its parameters, or `params` parameters, or `size` bytes stored as `dtype`.

    Raises UsageError unless exactly one target is given and lies below the teacher; DoesNotFitError, naming the
    nearest ratio that can be reached, when no student comes within 1 %.
    """
    section = section or StudentSection()
    teacher_params = num_parameters(build(family, config, "meta"))
    target = _target(family, config, teacher_params, ratio, params, size, dtype)
    asked = target / teacher_params
    variants = family.variants(config, channels_per_group=section.channels_per_group)
    found: list[_Candidate] = []
    for depth in _depths(family, config, variants, asked, target):
        found.extend(_candidates(family, config, variants, depth, target))
        fitting = [candidate for candidate in found if abs(candidate.error) <= TOLERANCE]
        if fitting:
            return _verified(family, config, min(fitting, key=lambda c: c.cost), teacher_params, asked)
    nearest = min(found, key=lambda candidate: abs(candidate.error))
    raise _does_not_fit(asked, target, nearest, teacher_params, section)


@dataclass(frozen=True)
class _Candidate:
    choice: dict[str, int]
    cost: float
    error: float
    scale: float

    def params(self, target: float) -> int:
        return round((1 + self.error) * target)


def _target(
    family: Family,
    config: Config,
    teacher: int,
    ratio: float | None,
    params: int | None,
    size: int | None,
    dtype: str | None,
) -> float:
    """The student's parameters; checks what was asked."""
    if sum(value is not None for value in (ratio, params, size)) != 1:
        raise UsageError("exactly one of ratio, params and size sets the target", "for example a ratio of 0.05")
    if ratio is not None:
        if not (math.isfinite(ratio) and 0 < ratio < 1):
            raise UsageError(f"ratio {ratio:g} is not between 0 and 1", "for example 0.05 for a student of 5 %")
        return ratio * teacher
    rules = family.tensor_rules(config, config)
    stored: torch.dtype = getattr(torch, dtype or "float32")
    if params is not None:
        target, told = float(params), f"{params:,} parameters"
    else:
        assert size is not None
        # The header of the teacher's file, which has at least as many tensors.
        header = file_bytes(rules, stored) - rules.num_parameters * stored.itemsize
        target, told = (size - header) / stored.itemsize, f"{size:,} bytes"
    if not 0 < target < teacher:
        where = "are not less than the teacher's" if target >= teacher else "hold no student of the teacher's"
        raise UsageError(f"{told} {where} {teacher:,} parameters", "ask for a student smaller than the teacher")
    return target


def _depths(
    family: Family, config: Config, variants: tuple[Variant, ...], ratio: float, target: float
) -> Iterator[dict[str, int]]:
    """Depth settings, best first: depth goes before width for large students, and where width would get too low."""
    knobs = [knob for knob in variants[-1].knobs if knob.kind == "depth"]
    options = [dict(zip([k.name for k in knobs], values, strict=True)) for values in _descending(knobs)]
    first = None
    if ratio >= DEPTH_FIRST:
        teacher = [knob.teacher for knob in _moving(variants[-1])]
        sizes = [float(_polynomial(family, config, variants[-1], option)(np.array([teacher]))[0]) for option in options]
        first = max(i for i, size in enumerate(sizes) if i == 0 or size >= target)
    else:
        widths = [(i, _scale(family, config, variants[-1], option, target)) for i, option in enumerate(options)]
        narrow = [(knob.narrow, knob.teacher) for knob in _moving(variants[-1]) if knob.narrow]
        wide = [i for i, scale in widths if all(scale * teacher >= least for least, teacher in narrow)]
        first = wide[0] if wide else len(options) - 1
    yield options[first]
    yield from (option for i, option in enumerate(options) if i != first)


def _descending(knobs: list[Knob]) -> Iterator[tuple[int, ...]]:
    return itertools.product(*(reversed(knob.values) for knob in knobs))


def _moving(variant: Variant) -> list[Knob]:
    """The knobs of the polynomial: widths, then the fine one."""
    return sorted((knob for knob in variant.knobs if knob.kind != "depth"), key=lambda knob: knob.kind == "fine")


def _polynomial(family: Family, config: Config, variant: Variant, depth: Mapping[str, int]) -> SizePolynomial:
    knobs = _moving(variant)
    steps = [knob.values.step for knob in knobs]
    # Far apart, so that no two widths are equal: equal neighbours would change which tensors exist.
    centre = [64 * (number + 1) * step for number, step in enumerate(steps)]

    def count(values: list[int]) -> int:
        choice = {**variant.fixed, **depth, **dict(zip([k.name for k in knobs], values, strict=True))}
        student = family.shrunk_config(config, choice)
        return family.tensor_rules(student, student).num_parameters

    return SizePolynomial.fit(count, centre, steps)


def _scale(family: Family, config: Config, variant: Variant, depth: Mapping[str, int], target: float) -> float:
    """The factor on all widths that gives `target` parameters at this depth, if widths were real numbers."""
    teacher = np.array([[float(knob.teacher) for knob in _moving(variant)]])
    scale = float(_polynomial(family, config, variant, depth).roots(0 * teacher, teacher, target)[0])
    return scale if math.isfinite(scale) else 0.0


def _candidates(
    family: Family, config: Config, variants: tuple[Variant, ...], depth: Mapping[str, int], target: float
) -> list[_Candidate]:
    """The best candidate of every variant at this depth, and the one nearest in size."""
    polynomial = _polynomial(family, config, variants[-1], depth)
    scale = max(_scale(family, config, variants[-1], depth, target), 1e-3)
    found = []
    for variant in variants:
        knobs = _moving(variant)
        points = _points(polynomial, knobs, scale, target)
        error = polynomial(points) / target - 1
        cost = variant.cost + _imbalance(points, knobs, scale) + 5 * np.abs(error)
        fits = np.abs(error) <= TOLERANCE * 0.95
        best = np.argmin(np.where(fits, cost, np.inf)) if fits.any() else np.argmin(np.abs(error))
        choice = dict(zip([knob.name for knob in knobs], (int(v) for v in points[best]), strict=True))
        found.append(_Candidate({**variant.fixed, **depth, **choice}, float(cost[best]), float(error[best]), scale))
    return found


def _points(polynomial: SizePolynomial, knobs: list[Knob], scale: float, target: float) -> np.ndarray:
    """Knob values `[N, knobs]` worth a look: width values near the scale, each with the fine knob that hits the target."""
    widths, fine = [knob for knob in knobs if knob.kind == "width"], [knob for knob in knobs if knob.kind == "fine"]
    number = max(2, int(CANDIDATES ** (1 / len(widths))))
    near = [sorted(knob.values, key=lambda v, k=knob: abs(math.log(v / (scale * k.teacher))))[:number] for knob in widths]
    grid = np.array(list(itertools.product(*near)), dtype=float)
    if not fine:
        return grid
    (knob,) = fine
    start = np.concatenate([grid, np.zeros((len(grid), 1))], axis=1)
    wanted = np.nan_to_num(polynomial.roots(start, np.eye(len(knobs))[-1:], target), nan=knob.values[0])
    usual = np.full(len(grid), scale * knob.teacher)
    both = []
    for value, step in ((wanted, 1), (wanted, 4), (wanted, 8), (usual, 8)):
        points = start.copy()
        points[:, -1] = np.clip(np.round(value / step) * step, knob.values[0], knob.values[-1])
        both.append(points)
    return np.concatenate(both)


def _imbalance(points: np.ndarray, knobs: list[Knob], scale: float) -> np.ndarray:
    """How far the widths are from one common scale `[N]`, plus small amends for awkward numbers."""
    teacher = np.array([knob.teacher for knob in knobs])
    is_width = np.array([knob.kind == "width" for knob in knobs])
    off = np.abs(np.log(points / (scale * teacher)))
    widths = off[:, is_width]
    worst = widths.max(-1)
    cost = worst + 0.5 * widths.mean(-1) + 2 * np.maximum(0, worst - BALANCED)
    cost += 0.2 * off[:, ~is_width].sum(-1)
    values, order = points[:, is_width], np.sign(np.diff(teacher[is_width]))
    # Widths that differ in the teacher should differ in the student, or shortcut convolutions get lost.
    cost += 0.5 * (np.sign(np.diff(values, axis=1)) != order).sum(-1)
    least = np.where(points >= 256, 16, np.where(points >= 64, 8, 4)) * (points >= 16)
    return cost + 0.02 * (points % np.maximum(least, 1) != 0).sum(-1)


def _verified(
    family: Family, config: Config, candidate: _Candidate, teacher_params: int, asked: float
) -> StudentPlan:
    """Build the student and run it, both without weights, before anyone relies on it."""
    student = family.shrunk_config(config, candidate.choice)
    model = build(family, student, "meta")
    check_forward(family, model, config)
    params = num_parameters(model)
    rules = family.tensor_rules(config, student)
    if rules.num_parameters != params or abs(params / (asked * teacher_params) - 1) > TOLERANCE:
        raise RuntimeError(f"planned {rules.num_parameters:,} parameters, built {params:,}: {candidate.choice}")
    plain = {key: value for key, value in config.items() if not key.startswith("_")}
    notes = (*_notes(config, student), *rules.notes)
    return StudentPlan(family.class_name, plain, student, params, teacher_params, asked, candidate.choice, notes)


def _notes(config: Config, student: Config) -> list[str]:
    changed = [key for key in student if not key.startswith("_") and config.get(key) != student[key]]
    return [f"{key}: {_plain(config.get(key))} -> {_plain(student[key])}" for key in changed]


def _plain(value: Any) -> str:
    return "default" if value is None else str(list(value) if isinstance(value, tuple) else value)


def _does_not_fit(
    asked: float, target: float, nearest: _Candidate, teacher_params: int, section: StudentSection
) -> DoesNotFitError:
    reached = nearest.params(target)
    why = "the smallest student" if nearest.error > 0 else "the nearest student"
    least = section.channels_per_group
    return DoesNotFitError(
        f"ratio {asked:.4g} cannot be reached within {TOLERANCE:.0%}: it means {target:,.0f} parameters, and {why} with at "
        f"least {least} channel(s) per norm group has {reached:,}",
        f"ask for ratio {reached / teacher_params:.4g}",
    )
