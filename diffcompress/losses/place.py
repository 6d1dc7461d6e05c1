"""PLACE: piecewise local adaptive coefficients, "LIFT and PLACE", Han, Yeo, Yoo, CVPR 2026, arXiv 2605.19729."""

import torch

from .fit import Line, fit_line, flat_outputs
from .reduction import Prediction, Reduction, size_factor
from .step import Step
from .terms import Fine, Gate, LossTerms, Norm, ReduceMean, identity, weigh


def place(
    student: Prediction,
    teacher: Prediction,
    *,
    group_size: int = 16,
    norm: Norm = "l1",
    reduction: Reduction = "mean",
    reduce_mean: ReduceMean = identity,
    fine: Fine = "squared",
    gate: Gate = "global",
    coarse_weight: float = 1.0,
    power: float = 1.0,
) -> LossTerms:
    """LIFT inside groups of elements that the student gets about equally wrong.

    Per sample and channel the N elements are sorted by their current error `(t - s)^2`, ascending and without
    gradient, and cut into `max(1, N // group_size)` consecutive groups with a line each; the last group takes the
    remainder too. A group counts by its number of elements. `group_size >= N` is LIFT; `group_size = 1` is L1
    output distillation, unless `norm="squared"`.

    `student`, `teacher`: raw predictions `[B, C, *spatial]`; `group_size`: a count of elements, at least 1. The other
    arguments, and what is computed in which precision, are those of `lift`. Returns LossTerms, slope and intercept
    `[B, C, groups]`, groups from the smallest error to the largest. Raises ValueError as `lift` does, and for a
    group_size below 1.
    """
    if group_size < 1:
        raise ValueError(f"group_size must be at least 1, got {group_size}")
    factor = size_factor(reduction, student)
    s, t = flat_outputs(student, teacher)
    teacher_variance = t.var(-1, correction=0)
    num_elements = s.shape[-1]
    num_groups = max(1, num_elements // group_size)
    if num_groups > 1:
        order = (t - s.detach()).abs().argsort(-1)  # the order of |d| is the order of d^2
        s, t = s.gather(-1, order), t.gather(-1, order)

    head = (num_groups - 1) * group_size  # all groups but the last, which is longer by the remainder
    parts = [(s[..., head:].unsqueeze(2), t[..., head:].unsqueeze(2))]
    if head:
        cut = (num_groups - 1, group_size)
        parts.insert(0, (s[..., :head].unflatten(-1, cut), t[..., :head].unflatten(-1, cut)))
    lines = [fit_line(x, y, teacher_variance, absolute=fine == "l1") for x, y in parts]
    line = Line(*(torch.cat(values, -1) for values in zip(*lines, strict=True)))
    share = s.new_full((num_groups,), group_size / num_elements)
    share[-1] = 1 - head / num_elements
    return weigh(
        line,
        share,
        factor,
        norm=norm,
        fine=fine,
        gate=gate,
        coarse_weight=coarse_weight,
        power=power,
        reduce_mean=reduce_mean,
    )


def term(step: Step) -> LossTerms:
    return place(step.prediction, step.target, group_size=step.knobs["group_size"], **step.by_lines)
