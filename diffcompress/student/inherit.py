"""Initial weights of a student: the teacher's most important channels, or a random start."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from diffcompress.families.base import Family, IndexSet, TensorRule, TensorRules
from diffcompress.recipe import StudentSection
from diffcompress.student.plan import StudentPlan
from diffcompress.student.size import build

Batch = tuple[Tensor, Tensor, Mapping[str, Tensor], Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]


def start_student(
    family: Family,
    plan: StudentPlan,
    section: StudentSection,
    teacher: Mapping[str, Tensor],
    *,
    scores: Mapping[str, Tensor] | None = None,
    seed: int = 0,
) -> nn.Module:
    """The planned student on the CPU in float32, trainable, with its first weights.

    teacher: the teacher's tensors by name, read one by one. scores: elementwise importance of each teacher tensor, from
    `taylor_scores`; None ranks by magnitude. A random start follows from `seed` alone.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = build(family, plan.config, "cpu")
    if section.start == "inherit":
        student.load_state_dict(inherit(plan.rules(family), teacher, scores))
    return student


def inherit(
    rules: TensorRules, teacher: Mapping[str, Tensor], scores: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """The student's state dict in float32, cut from the teacher's by `rules`; `scores` as in `start_student`."""
    kept = pick(rules, magnitude_scores(teacher) if scores is None else scores)
    return {rule.student: _cut(rule, rules.sets, kept, teacher) for rule in rules.rules}


def magnitude_scores(teacher: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Squared weights: summed over a channel's slices they are its squared L2 norm."""
    return _Squares(teacher)


class _Squares(Mapping[str, Tensor]):
    """Each is read when it is asked for, so that a teacher that lies on disk is never in memory as a whole."""

    def __init__(self, teacher: Mapping[str, Tensor]) -> None:
        self._teacher = teacher

    def __getitem__(self, name: str) -> Tensor:
        return self._teacher[name].detach().float().square()

    def __iter__(self) -> Iterator[str]:
        return iter(self._teacher)

    def __len__(self) -> int:
        return len(self._teacher)


def taylor_scores(
    family: Family, teacher: nn.Module, batches: Iterable[Batch], loss: Loss = functional.mse_loss
) -> dict[str, Tensor]:
    """First-order Taylor importance |weight * gradient|, summed over `batches`, per element of each teacher tensor.

    A batch is (noisy, timestep, conditioning, target). The gradient is taken batch by batch: near an optimum its mean
    over the data is close to zero for every weight. The teacher's weights and gradients are left as they were.
    """
    weights = dict(teacher.named_parameters())
    flags = {name: weight.requires_grad for name, weight in weights.items()}
    scores = {name: torch.zeros_like(value, dtype=torch.float32) for name, value in teacher.state_dict().items()}
    try:
        teacher.requires_grad_(True)
        for noisy, timestep, conditioning, target in batches:
            with torch.enable_grad():
                # Without a learned variance: that has no plain target.
                value = loss(family.predict(teacher, noisy, timestep, conditioning)[:, : target.shape[1]], target)
                gradients = torch.autograd.grad(value, list(weights.values()), allow_unused=True)
            for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
                if gradient is not None:
                    scores[name] += (weight.detach() * gradient).abs().float()
    finally:
        for name, weight in weights.items():
            weight.requires_grad_(flags[name])
    return scores


def pick(rules: TensorRules, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """For each index set the teacher channels to keep, ascending, by the summed scores of all tensors it cuts."""
    totals = {name: torch.zeros(index.teacher_size, dtype=torch.float64) for name, index in rules.sets.items()}
    for rule in rules.rules:
        if rule.teacher is None or not rule.scored:
            continue
        score = scores[rule.teacher].double().cpu()
        for axis, names in enumerate(rule.axes):
            if not names:
                continue
            along = score.movedim(axis, 0).flatten(1).sum(1) if score.dim() > 1 else score
            parts = along.split([rules.sets[name].teacher_size for name in names])
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
    if index.size == index.teacher_size:
        return torch.arange(index.size)
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


def _cut(
    rule: TensorRule, sets: Mapping[str, IndexSet], kept: Mapping[str, Tensor], teacher: Mapping[str, Tensor]
) -> Tensor:
    value = _passed_through(rule, sets) if rule.teacher is None else teacher[rule.teacher].detach().float().cpu()
    for axis, names in enumerate(rule.axes):
        if not names:
            continue
        parts = value.split([sets[name].teacher_size for name in names], dim=axis)
        value = torch.cat([_along(p, axis, sets[n], kept[n]) for p, n in zip(parts, names, strict=True)], dim=axis)
    if tuple(value.shape) != rule.shape:
        raise RuntimeError(f"{rule.student}: rule gives {tuple(value.shape)}, the student has {rule.shape}")
    return (value * rule.scale).contiguous()


def _along(value: Tensor, axis: int, index: IndexSet, kept: Tensor) -> Tensor:
    if index.mixture is None:
        return value.index_select(axis, kept)
    return torch.tensordot(value, torch.from_numpy(index.mixture), dims=([axis], [0])).movedim(-1, axis)


def _passed_through(rule: TensorRule, sets: Mapping[str, IndexSet]) -> Tensor:
    """What the teacher does where the student needs a tensor and it has none: it passes its input on."""
    sizes = [sum(sets[name].teacher_size for name in names) for names in rule.axes]
    if len(rule.shape) == 1:
        return torch.zeros(sizes[0])
    return torch.eye(*sizes[:2]).view(*sizes[:2], *rule.shape[2:])
