"""Find the student: a diffusers config of the asked size, searched on the meta device; no weights are read."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import torch

from diffcompress.errors import DoesNotFitError, UsageError
from diffcompress.families.base import Config, Family, TensorRules, Variant, complete
from diffcompress.families.shapes import shapes
from diffcompress.noise import NoiseProcess
from diffcompress.recipe import StudentSection
from diffcompress.sources import original_shapes
from diffcompress.student import adapters, costs
from diffcompress.student.search import MOST_WORK, TOLERANCE, Candidate, Search
from diffcompress.student.size import file_bytes
from diffcompress.student.stack_search import KEPT_TOLERANCE, StackSearch

# How often a search aims lower for a student that works too much.
ATTEMPTS = 3


@dataclass(frozen=True)
class StudentPlan:
    """What will be built: everything about the student but its weights.

    config: plain diffusers config; params, teacher_params: denoiser parameters without buffers; ratio: params /
    teacher_params; choice: knob values; notes: what a person should know, in plain sentences; prediction_type: what the
    student predicts, as diffusers spells it, None where no scheduler tells it; adapters: of layers that LoRA adapters
    of a text-conditional teacher still fit, the teacher's by the student's.
    """

    family: str
    teacher_config: dict[str, Any]
    config: dict[str, Any]
    params: int
    teacher_params: int
    requested_ratio: float
    choice: dict[str, int]
    notes: tuple[str, ...] = ()
    prediction_type: str | None = None
    adapters: dict[str, str] = field(default_factory=dict)

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
    noise: NoiseProcess | None = None,
) -> StudentPlan:
    """The student of `config` with `ratio` of its parameters, `params` parameters, or `size` bytes stored as `dtype`.

    dtype: a torch name, "float32" if None; section: how students are built; noise: the teacher's, None where only its
    config is known. Raises UsageError unless exactly one target is given and lies below the teacher; DoesNotFitError,
    naming the nearest ratio that can be reached, when no student comes within 1 % (a transformer that keeps its
    teacher's head size: 5 %).
    """
    section = section or StudentSection()
    config = complete(family.class_name, config)
    found = _shape(family, config, ratio, params, size, dtype, section)
    if noise is None:
        return found
    predicts = noise.prediction_type if section.prediction == "teacher" else noise.velocity
    note = f"prediction_type: {noise.prediction_type} -> {predicts} (student.prediction)"
    notes = found.notes if predicts == noise.prediction_type else (*found.notes, note)
    return replace(found, prediction_type=predicts, notes=notes)


def _shape(
    family: Family,
    config: Config,
    ratio: float | None,
    params: int | None,
    size: int | None,
    dtype: str | None,
    section: StudentSection,
) -> StudentPlan:
    try:
        teacher_params = shapes(family.class_name, config).num_parameters
    except Exception as error:
        raise UsageError(
            f"the teacher's config does not build a {family.class_name}: {error}", "check the config"
        ) from error
    variants = family.variants(config, channels_per_group=section.channels_per_group)
    _check_runs(family, config, variants[0])
    target = _target(family, config, teacher_params, ratio, params, size, dtype)
    asked = target / teacher_params
    if family.kind == "transformer":
        return _plan_stack(family, config, variants, target, teacher_params)
    search = Search(family, config, variants, target, asked, section.widths)
    found: list[Candidate] = []
    for candidates in search.candidates():
        found.extend(candidates)
        student = _first(family, config, candidates, teacher_params, asked)
        if student is not None:
            return _fast(family, config, search, student)
    nearest = min(found, key=lambda candidate: abs(candidate.error))
    limit = f"at least {section.channels_per_group} channel(s) per norm group"
    raise _does_not_fit(asked, target, nearest, teacher_params, limit, nearest.error > 0)


def _first(
    family: Family, config: Config, candidates: list[Candidate], teacher_params: int, asked: float
) -> StudentPlan | None:
    """The best of `candidates` that is what it seems."""
    for candidate in sorted(candidates, key=lambda c: c.cost):
        student = _verified(family, config, candidate, teacher_params, asked) if candidate.fits else None
        if student is not None:
            return student
    return None


def _fast(family: Family, config: Config, search: Search, student: StudentPlan) -> StudentPlan:
    """`student`, or one of as many parameters that does not work more than MOST_WORK, as near to it as there is one.

    What attention does at each pair of positions the search does not know: it aims lower until that fits, too.
    """
    for _ in range(ATTEMPTS if search.widths == "balanced" else 0):
        work = _work(family, config, student)
        if work <= MOST_WORK:
            break
        search = search.aiming_lower(student.choice, work)
        other = _first(family, config, next(search.candidates()), student.teacher_params, student.requested_ratio)
        if other is None:
            break
        student = other
    return student


def _work(family: Family, config: Config, student: StudentPlan) -> float:
    """The share of the teacher's multiply-accumulates over that of its parameters."""
    own, whole = (costs.count(family, one).macs for one in (student.config, config))
    return own / whole / student.ratio


def _plan_stack(
    family: Family, config: Config, variants: tuple[Variant, ...], target: float, teacher_params: int
) -> StudentPlan:
    asked = target / teacher_params
    count = partial(_count, family, config)
    search = StackSearch(family, config, variants, target, count, partial(_can_be_said, family, config))
    best = search.best()
    student = _verified(family, config, best, teacher_params, asked, KEPT_TOLERANCE) if best else None
    if student is None:
        nearest = search.nearest()
        if nearest is None:
            raise DoesNotFitError(
                f"no layer, head or head size of this {family.class_name} can shrink", "take a larger teacher"
            )
        freest = variants[-1]
        smallest = nearest.choice == {**freest.fixed, **{knob.name: knob.values[0] for knob in freest.knobs}}
        limit = "whole heads and layers"
        if search.width_of(nearest) >= search.wide_enough:
            limit += f" and {search.wide_enough} channels or more"
        raise _does_not_fit(
            asked, target, nearest, teacher_params, limit, smallest, _kept_whole(family, config, nearest.choice)
        )
    assert best is not None
    width, values = search.width_of(best), search.token_values
    if width < values:
        note = (
            f"{width} channels are fewer than the {values} values of a token: this student cannot pass on "
            "the noise it is to predict, and its samples may stay noise; a ratio with a wider student serves better"
        )
    elif width < search.wide_enough:
        note = (
            f"{width} channels leave little room beside the {values} values of a token: a student with "
            f"{search.wide_enough} or more predicts the noise much better"
        )
    else:
        return student
    return replace(student, notes=(*student.notes, note))


def _count(family: Family, config: Config, choice: Mapping[str, int]) -> int:
    return shapes(family.class_name, family.shrunk_config(config, choice)).num_parameters


def _can_be_said(family: Family, config: Config, choice: Mapping[str, int]) -> bool:
    """Whether programs that read the authors' layout can load the student."""
    return original_shapes.limit(family.class_name, family.shrunk_config(config, choice)) is None


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
    stored: torch.dtype = getattr(torch, dtype or "float32")
    if params is not None:
        target, told = float(params), f"{params:,} parameters"
    else:
        assert size is not None
        # The header of the teacher's file, which has at least as many tensors.
        rules = family.tensor_rules(config, config)
        header = file_bytes(rules, stored) - rules.num_elements * stored.itemsize
        target, told = (size - header) / stored.itemsize, f"{size:,} bytes"
    if not 0 < target < teacher:
        where = "are not less than the teacher's" if target >= teacher else "hold no student of the teacher's"
        raise UsageError(f"{told} {where} {teacher:,} parameters", "ask for a student smaller than the teacher")
    return target


def _verified(
    family: Family,
    config: Config,
    candidate: Candidate,
    teacher_params: int,
    asked: float,
    tolerance: float = TOLERANCE,
) -> StudentPlan | None:
    """Build the student and run it, both without weights, before anyone relies on it; None if its size is off."""
    student = family.shrunk_config(config, candidate.choice)
    params = shapes(family.class_name, student).num_parameters
    if abs(params / (asked * teacher_params) - 1) > tolerance:
        return None
    try:
        costs.check(family, student, config)
    except (RuntimeError, ValueError) as error:
        raise DoesNotFitError(
            f"a student of ratio {asked:.4g} with {candidate.choice} does not run on the teacher's input: {error}",
            "ask for another ratio, or more student.channels_per_group",
        ) from error
    rules = family.tensor_rules(config, student)
    plain = {key: _plain(value) for key, value in config.items() if not key.startswith("_")}
    student = {key: _plain(value) for key, value in student.items()}
    notes = (*_notes(config, student, family.reasons(config, student)), *rules.notes)
    found = StudentPlan(family.class_name, plain, student, params, teacher_params, asked, candidate.choice, notes)
    if not family.text_conditioning(config):  # which have no adapters
        return found
    return replace(found, notes=(*notes, adapters.told(rules)), adapters=adapters.fitting(rules))


def _check_runs(family: Family, config: Config, variant: Variant) -> None:
    """Raise UsageError unless the teacher, a transformer in its shallowest form, runs on its own samples."""
    if family.kind == "transformer":  # blocks alike: one tells what sixty would in as many times the seconds
        config = {**config, **{knob.name: knob.values[0] for knob in variant.knobs if knob.kind == "depth"}}
    try:
        costs.check(family, config, config)
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(
            f"the teacher does not run on samples of its own shape {family.sample_shape(config)}: {error}",
            "check its config, sample_size first",
        ) from error


def _notes(config: Config, student: Config, reasons: Mapping[str, str]) -> list[str]:
    """What changed, with the reason where there is one to tell."""
    old = {key: _plain(config.get(key)) for key in student}
    changed = [key for key in student if not key.startswith("_") and old[key] != student[key]]
    return [
        f"{key}: {'default' if old[key] is None else old[key]} -> {student[key]}"
        + (f" ({reasons[key]})" if key in reasons else "")
        for key in changed
    ]


def _plain(value: Any) -> Any:
    """A config's value as JSON holds it."""
    return list(value) if isinstance(value, tuple) else value


def _kept_whole(family: Family, config: Config, choice: Mapping[str, int]) -> str:
    """Which of a student's layers do not shrink with it; nothing if they are less than half of it."""
    rules = family.tensor_rules(config, family.shrunk_config(config, choice)).rules
    sizes: Counter[str] = Counter()
    for rule in rules:
        if rule.scored and not any(rule.axes):
            sizes[rule.student.partition(".")[0]] += math.prod(rule.shape)
    fixed = sizes.total()
    if fixed < _count(family, config, choice) / 2:
        return ""
    names = ", ".join(name for name, size in sizes.most_common() if size > fixed / 20)
    return f", {fixed:,} of them in layers that never shrink ({names})"


def _does_not_fit(
    asked: float, target: float, nearest: Candidate, teacher_params: int, limit: str, smallest: bool, kept: str = ""
) -> DoesNotFitError:
    reached = round((1 + nearest.error) * target)
    which = "smallest" if smallest else "nearest"
    return DoesNotFitError(
        f"ratio {asked:.4g} cannot be reached within {TOLERANCE:.0%}: it means {target:,.0f} parameters, and the "
        f"{which} student with {limit} has {reached:,}{kept}",
        f"ask for ratio {reached / teacher_params:.4g}",
    )
