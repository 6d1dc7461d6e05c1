"""Distillation of block outputs, through learned adapters where the student is narrower than the teacher."""

from collections.abc import Mapping, Sequence
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from .reduction import Reduction, Scalar, precise, size_factor
from .step import Step

Blocks = Mapping[str, Tensor] | Sequence[Tensor]
Features = TypeVar("Features", Mapping[str, Tensor], Sequence[Tensor])
# Standard deviations beyond which an activation is massive: U-Nets of the demo have none there, its transformers 0.4 %
# of them with 15 % of the energy.
MASSIVE = 5.0


class Adapters(nn.Module):
    """One linear map per block from the student's channels to the teacher's: a 1x1 convolution of any spatial rank.

    Identity, without parameters, where the widths agree. Training only: adapters are no part of the student.
    `channel_axis` is 1 for maps `[B, C, *spatial]` and -1 for tokens `[B, L, C]`. Raises ValueError if the two lists
    differ in length.
    """

    def __init__(
        self, student_channels: Sequence[int], teacher_channels: Sequence[int], *, channel_axis: int = 1
    ) -> None:
        super().__init__()
        if len(student_channels) != len(teacher_channels):
            raise ValueError(f"{len(student_channels)} student blocks for {len(teacher_channels)} teacher blocks")
        self.channel_axis = channel_axis
        widths = zip(student_channels, teacher_channels, strict=True)
        self.maps = nn.ModuleList(nn.Identity() if s == t else nn.Linear(s, t) for s, t in widths)

    def forward(self, features: Features) -> Features:
        """The same dict or list, block by block in order, at the teacher's widths."""
        blocks = list(features.values() if isinstance(features, Mapping) else features)
        if len(blocks) != len(self.maps):
            raise ValueError(f"{len(blocks)} block outputs for {len(self.maps)} adapters")
        wide = [self._widen(block, adapter) for block, adapter in zip(blocks, self.maps, strict=True)]
        named = dict(zip(features, wide, strict=True)) if isinstance(features, Mapping) else wide
        return cast(Features, named)

    def _widen(self, block: Tensor, adapter: nn.Module) -> Tensor:
        if isinstance(adapter, nn.Identity):
            return block
        return adapter(block.movedim(self.channel_axis, -1)).movedim(-1, self.channel_axis)


def feature_kd(
    student_features: Features,
    teacher_features: Features,
    *,
    reduction: Reduction = "mean",
    mask_beyond: float | None = None,
) -> Scalar:
    """Sum over blocks of the mean squared error of their outputs `[B, ...]`, the student's already adapted in width.

    `mean`: over everything in a block; `sum`: over all but the batch. `mask_beyond`: leave out elements where the
    teacher lies further than this many standard deviations from its own mean (per sample and block); `mean` is then
    over the elements that are left (DiT: 2.0, its hidden states have a few massive activations). 0-d, >= 0, float32
    or better, teacher without gradient. Raises ValueError for no blocks, other names or numbers of blocks, shapes
    that differ, an unknown reduction, and a mask_beyond that is not positive.
    """
    if mask_beyond is not None and not mask_beyond > 0:
        raise ValueError(f"mask_beyond must be positive, got {mask_beyond}")
    pairs = _pairs(student_features, teacher_features)
    return torch.stack([_block(student, teacher, reduction, mask_beyond) for student, teacher in pairs]).sum()


def relative_feature_kd(student_features: Features, teacher_features: Features) -> Scalar:
    """Mean over blocks and samples of `|s - t|^2 / |t|^2`, of outputs `[B, ...]`, the student's already as wide.

    So blocks count alike whatever the scale of their activations, which differs by orders of magnitude between them
    and from one noise level to the next; 1 is what a student that says nothing has. Left out of both norms are the
    teacher's massive activations: more than MASSIVE standard deviations from its mean (per sample and block). 0-d,
    >= 0, float32 or better, teacher without gradient; a block whose teacher is zero counts 0. Raises ValueError for no
    blocks, other names or numbers of blocks, and shapes that differ.
    """
    pairs = _pairs(student_features, teacher_features)
    return torch.stack([_relative(student, teacher) for student, teacher in pairs]).mean()


def last_of_each_resolution(features: Sequence[Tensor]) -> list[int]:
    """Ascending places of the blocks after which none of `features` `[B, C, *positions]` has as many positions.

    A U-Net's are those on its way up, a transformer's is its last.
    """
    last = {feature.shape[2:].numel(): place for place, feature in enumerate(features)}
    return sorted(last.values())


def _relative(student: Tensor, teacher: Tensor) -> Scalar:
    s, t = (x.flatten(1) for x in precise(student, teacher))
    massive = ~_within(t, MASSIVE)
    error, size = ((x.square().masked_fill(massive, 0.0)).sum(1) for x in (s - t, t))
    return torch.where(size > 0, error / size.where(size > 0, 1.0), 0.0).mean()


def _within(teacher: Tensor, deviations: float) -> Tensor:
    """Where rows `[B, N]` lie within that many standard deviations of their means."""
    centred = teacher - teacher.mean(1, keepdim=True)
    return centred.square() <= deviations**2 * centred.square().mean(1, keepdim=True)


def _block(student: Tensor, teacher: Tensor, reduction: Reduction, mask_beyond: float | None) -> Scalar:
    factor = size_factor(reduction, student)
    s, t = (x.flatten(1) for x in precise(student, teacher))
    error = (s - t).square()
    if mask_beyond is None:
        return factor * error.mean()
    keep = _within(t, mask_beyond)
    error = error.masked_fill(~keep, 0.0)
    return error.sum(1).mean() if reduction == "sum" else error.sum() / keep.sum().clamp(min=1)


def _pairs(student: Blocks, teacher: Blocks) -> list[tuple[Tensor, Tensor]]:
    if len(student) == 0:
        raise ValueError("feature_kd needs at least one block output")
    if isinstance(student, Mapping) and isinstance(teacher, Mapping):
        if student.keys() != teacher.keys():
            raise ValueError(f"student blocks {sorted(student)} differ from teacher blocks {sorted(teacher)}")
        return [(student[name], teacher[name]) for name in student]
    if isinstance(student, Mapping) or isinstance(teacher, Mapping):
        raise ValueError("student blocks have names and teacher blocks have none, or the other way round")
    if len(student) != len(teacher):
        raise ValueError(f"{len(student)} student blocks for {len(teacher)} teacher blocks")
    return list(zip(student, teacher, strict=True))


def term(step: Step) -> Scalar:
    """By `feature_norm`: every block, as published, or the last of each resolution, by the teacher's norm."""
    ours, theirs = step.features, [feature.float() for feature in step.teacher_features()]
    if step.knobs["feature_norm"] == "squared":
        return feature_kd(ours, theirs, reduction=step.knobs["reduction"])
    places = last_of_each_resolution(theirs)
    return relative_feature_kd([ours[place] for place in places], [theirs[place] for place in places])
