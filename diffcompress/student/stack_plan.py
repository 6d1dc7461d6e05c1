"""The transformer student of a target: the best stack of the search that runs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from diffcompress.errors import DoesNotFitError
from diffcompress.families.base import Variant
from diffcompress.families.shapes import shapes
from diffcompress.sources import original_shapes
from diffcompress.student.proven import proven
from diffcompress.student.stack_search import KEPT_TOLERANCE, StackSearch
from diffcompress.student.student_plan import StudentPlan
from diffcompress.student.target import Target


def plan_stack(target: Target, variants: tuple[Variant, ...]) -> StudentPlan:
    """Raises DoesNotFitError, naming the nearest ratio that can be reached, when no student comes near enough."""
    count, said = partial(_count, target), partial(_can_be_said, target)
    search = StackSearch(target.family, target.config, variants, target.params, count, said)
    best = search.best()
    student = proven(target, best, KEPT_TOLERANCE) if best else None
    if best is None or student is None:
        raise _not_met(target, search, variants[-1])
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


def _not_met(target: Target, search: StackSearch, freest: Variant) -> DoesNotFitError:
    nearest = search.nearest()
    if nearest is None:
        return DoesNotFitError(
            f"no layer, head or head size of this {target.family.class_name} can shrink", "take a larger teacher"
        )
    smallest = nearest.choice == {**freest.fixed, **{knob.name: knob.values[0] for knob in freest.knobs}}
    limit = "whole heads and layers"
    if search.width_of(nearest) >= search.wide_enough:
        limit += f" and {search.wide_enough} channels or more"
    return target.not_met(nearest, limit, smallest=smallest, kept=_kept_whole(target, nearest.choice))


def _count(target: Target, choice: Mapping[str, int]) -> int:
    return shapes(target.family.class_name, target.family.shrunk_config(target.config, choice)).num_parameters


def _can_be_said(target: Target, choice: Mapping[str, int]) -> bool:
    """Whether programs that read the authors' layout can load the student."""
    return original_shapes.limit(target.family.class_name, target.family.shrunk_config(target.config, choice)) is None


def _kept_whole(target: Target, choice: Mapping[str, int]) -> str:
    """Which of a student's layers do not shrink with it; nothing if they are less than half of it."""
    rules = target.family.tensor_rules(target.config, target.family.shrunk_config(target.config, choice)).rules
    sizes: Counter[str] = Counter()
    for rule in rules:
        if rule.scored and not any(rule.axes):
            sizes[rule.student.partition(".")[0]] += math.prod(rule.shape)
    fixed = sizes.total()
    if fixed < _count(target, choice) / 2:
        return ""
    names = ", ".join(name for name, size in sizes.most_common() if size > fixed / 20)
    return f", {fixed:,} of them in layers that never shrink ({names})"
