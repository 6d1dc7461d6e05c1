"""Initial weights of a student: the teacher's most important channels, or a random start."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from accelerate import init_empty_weights
from diffusers import ModelMixin
from torch import Tensor

from diffcompress.families.base import Family, IndexSet, TensorRule, TensorRules
from diffcompress.recipe import StudentSection
from diffcompress.student.scores import AxisScores, magnitude_scores
from diffcompress.student.size import build
from diffcompress.student.student_plan import StudentPlan

# In place of a teacher's channel, where a student has more.
NEW = -1


def start_student(
    family: Family,
    plan: StudentPlan,
    section: StudentSection,
    teacher: Mapping[str, Tensor],
    *,
    scores: Mapping[str, AxisScores] | None = None,
    seed: int = 0,
) -> ModelMixin:
    """The planned student on the CPU in float32, trainable, with its first weights.

    teacher: the teacher's tensors by name, read one by one. scores: importance of each teacher tensor's slices, from
    `taylor_scores`; None ranks by magnitude. A random start follows from `seed` alone.
    """
    if section.start == "inherit":
        # Parameters without memory, but real buffers: some are computed when a model is built, and never inherited.
        with init_empty_weights(include_buffers=False):
            student = build(family, plan.config, "cpu")
        student.load_state_dict(inherit(plan.rules(family), teacher, scores), assign=True)
        return student
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(family, plan.config, "cpu")


def inherit(
    rules: TensorRules, teacher: Mapping[str, Tensor], scores: Mapping[str, AxisScores] | None = None
) -> dict[str, Tensor]:
    """The student's state dict in float32, cut from the teacher's by `rules`; `scores` as in `start_student`."""
    kept = pick(rules, magnitude_scores(teacher) if scores is None else scores)
    return {rule.student: _cut(rule, rules.sets, kept, teacher) for rule in rules.rules}


def pick(rules: TensorRules, scores: Mapping[str, AxisScores]) -> dict[str, Tensor]:
    """For each index set the teacher channels to keep, ascending, by the summed scores of all tensors it cuts.

    A set that is larger than the teacher's has all of them, and NEW where there are none.
    """
    totals = {name: torch.zeros(index.teacher_size, dtype=torch.float64) for name, index in rules.sets.items()}
    for rule in rules.rules:
        if rule.teacher is None or not rule.scored:
            continue
        for names, along in zip(rule.axes, scores[rule.teacher].along, strict=True):
            if not names:
                continue
            parts = along.cpu().double().split([rules.sets[name].teacher_size for name in names])
            for name, part in zip(names, parts, strict=True):
                totals[name] += part
    kept = {name: _best(index, totals[name]) for name, index in rules.sets.items() if index.follows is None}
    for name, index in rules.sets.items():
        if index.follows is not None:
            leader = rules.sets[index.follows]
            groups = (kept[index.follows] // (leader.teacher_size // index.teacher_groups)).unique()
            kept[name] = _inside(index, groups)
    return kept


def _inside(index: IndexSet, groups: Tensor) -> Tensor:
    """The channels at the set's positions (all, if it names none) of teacher `groups`."""
    wide = index.teacher_size // index.teacher_groups
    positions = torch.arange(wide) if index.positions is None else torch.tensor(index.positions)
    return (groups[:, None] * wide + positions).flatten()


def _best(index: IndexSet, score: Tensor) -> Tensor:
    """The `size` best channels, ascending, such that student groups are whole teacher groups, unions or parts of them.

    Each student group takes as few teacher groups as hold enough channels, and an equal share of channels from each.
    """
    if index.size >= index.teacher_size:
        return _all(index)
    own, wide = index.size // index.groups, index.teacher_size // index.teacher_groups
    if index.positions is not None:
        best = _inside(index, torch.arange(index.teacher_groups))
        totals = score[best].view(index.teacher_groups, -1).sum(1)
        return _inside(index, totals.topk(index.groups).indices.sort().values)
    sources = math.ceil(own / wide)
    if sources * index.groups > index.teacher_groups:
        return score.topk(index.size).indices.sort().values
    share = math.ceil(own / sources)
    ranked = score.view(index.teacher_groups, wide).sort(dim=1, descending=True, stable=True)
    groups = ranked.values[:, :share].sum(1).topk(sources * index.groups).indices.sort().values
    picks = []
    for position, group in enumerate(groups.tolist()):
        # The remainder goes to the first sources of each student group.
        number = own // sources + (position % sources < own % sources)
        picks.append(group * wide + ranked.indices[group, :number])
    return torch.cat(picks).sort().values


def _all(index: IndexSet) -> Tensor:
    """Every teacher channel, in its own group where there are as many in the student; new ones behind them."""
    groups = index.groups if index.groups == index.teacher_groups else 1
    kept = torch.arange(index.teacher_size).view(groups, -1)
    new = torch.full((groups, (index.size - index.teacher_size) // groups), NEW)
    return torch.cat([kept, new], 1).flatten()


def _cut(
    rule: TensorRule, sets: Mapping[str, IndexSet], kept: Mapping[str, Tensor], teacher: Mapping[str, Tensor]
) -> Tensor:
    value = _passed_through(rule, sets) if rule.teacher is None else teacher[rule.teacher].detach().cpu()
    for axis, names in enumerate(rule.axes):
        if not names:
            continue
        parts = value.split([sets[name].teacher_size for name in names], dim=axis)
        value = torch.cat([_along(p, axis, sets[n], kept[n]) for p, n in zip(parts, names, strict=True)], dim=axis)
    if tuple(value.shape) != rule.shape:
        raise RuntimeError(f"{rule.student}: rule gives {tuple(value.shape)}, the student has {rule.shape}")
    return (value.float() * rule.scale).contiguous()


def _along(value: Tensor, axis: int, index: IndexSet, kept: Tensor) -> Tensor:
    if index.mixture is None:
        cut = value.index_select(axis, kept.clamp(min=0))
        return cut if bool((kept != NEW).all()) else _grown(cut, axis, kept == NEW)
    return torch.tensordot(value.float(), torch.from_numpy(index.mixture), dims=([axis], [0])).movedim(-1, axis)


def _grown(value: Tensor, axis: int, new: Tensor) -> Tensor:
    """What is `new` along an axis: nothing hears it yet, and it says what noise of the other weights' size says."""
    if axis > 0:
        filler = torch.zeros(())
    elif value.dim() == 1:
        filler = value.float().mean()
    else:
        noise = torch.randn(value.shape, generator=torch.Generator().manual_seed(math.prod(value.shape)))
        filler = noise * value.float().std()
    shape = [-1 if axis == number else 1 for number in range(value.dim())]
    return torch.where(new.view(shape), filler, value.float())


def _passed_through(rule: TensorRule, sets: Mapping[str, IndexSet]) -> Tensor:
    """What the teacher does where the student needs a tensor and it has none: it passes its input on."""
    sizes = [sum(sets[name].teacher_size for name in names) for names in rule.axes]
    if len(rule.shape) == 1:
        return torch.zeros(sizes[0])
    return torch.eye(*sizes[:2]).view(*sizes[:2], *rule.shape[2:])
