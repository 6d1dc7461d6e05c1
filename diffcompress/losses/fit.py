"""The line under LIFT and PLACE: centred least squares of the teacher on the student, one line per group.

"LIFT and PLACE", Han, Yeo, Yoo, CVPR 2026, arXiv 2605.19729.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from .reduction import Prediction, precise

Flat = Float[Tensor, "batch channels elements"]
Grouped = Float[Tensor, "batch channels groups count"]
PerGroup = Float[Tensor, "batch channels groups"]
PerChannel = Float[Tensor, "batch channels"]

# The published fit adds 1e-7 to the student's variance. That is too little: a group of standard deviation 1e-4 facing
# a teacher of 1 gets a slope in the hundreds and gradients of 1e6, a steep barrier between a flat student and a right
# one. Adding more would bend the lines that healthy groups should find exactly. So the variance is not increased; it
# has a floor, below which the fit slides continuously to the identity (slope 1, intercept mean(t) - mean(s)).
# The floor is the sum of four parts, of which usually one matters:
STEEPEST = 16.0  # group's teacher variance / 16^2: |slope - 1| <= 1 + 16, and lines of a slope up to 16 stay exact
CHANNEL_SHARE = 1e-7  # of the channel's teacher variance (the published eps, made relative): groups flat on both sides,
# which sorting does make; smaller than the spread of any group of 16 of 64 x 64 elements, so that lines stay exact
ROUNDING = 8.0  # units of rounding of the group's mean: a smaller standard deviation is noise of the arithmetic
SILENCE = 1e-12  # standard deviation 1e-6: an output of zeros divides nothing by zero


def flat_outputs(student: Prediction, teacher: Prediction) -> tuple[Flat, Flat]:
    """Both as `[B, C, N]` in float32 or better, the teacher without gradient. ValueError for any other shapes."""
    if student.ndim < 3:
        raise ValueError(f"expected [batch, channels, *spatial], got shape {tuple(student.shape)}")
    student, teacher = precise(student, teacher)
    return student.flatten(2), teacher.flatten(2)


class Line(NamedTuple):
    """One line `t ~ (1 + tilt) * s + intercept` per group."""

    tilt: PerGroup  # slope - 1, kept apart from the 1 so that no digits are lost near the identity; has a gradient
    intercept: PerGroup  # in units of the outputs; has a gradient
    explained: PerGroup  # mean square of what the line corrects, `tilt * s + intercept`; has a gradient
    residual: PerGroup  # mean squared (or absolute) residual of the line; gradient through `s` alone, coefficients held


def fit_line(student: Grouped, teacher: Grouped, teacher_variance: PerChannel, *, absolute: bool = False) -> Line:
    """Least squares in each group (last axis): `slope = cov(s, t) / var(s)`, `intercept = mean(t) - slope * mean(s)`.

    Written in the difference `d = t - s`: `slope - 1 = cov(s, d) / var(s)`,
    `intercept = mean(d) - (slope - 1) * mean(s)`. So equal outputs give exactly the identity in any precision, constant
    groups included. `teacher_variance` is that of the whole channel; `absolute`: the residual's mean of absolute values
    instead of squares.
    """
    difference = teacher - student
    student_mean, difference_mean = student.mean(-1), difference.mean(-1)
    raw = student, difference
    student, difference = _less(student, student_mean), _less(difference, difference_mean)
    variance = student.square().mean(-1)
    with torch.no_grad():
        group_variance = (student + difference).square().mean(-1)
        floor = group_variance / STEEPEST**2 + CHANNEL_SHARE * teacher_variance.unsqueeze(-1) + SILENCE
        floor += (ROUNDING * torch.finfo(student.dtype).eps) ** 2 * (student_mean.square() + difference_mean.square())
    tilt = (student * difference).mean(-1) / torch.maximum(variance, floor)
    intercept = difference_mean - tilt * student_mean
    if absolute:  # a*s + b - t, whose mean is zero while that of its signs is not: no gradient through the means
        student, difference = _less(raw[0], student_mean.detach()), _less(raw[1], difference_mean.detach())
    residual = tilt.detach().unsqueeze(-1) * student - difference
    explained = tilt.square() * variance + difference_mean.square()
    return Line(tilt, intercept, explained, (residual.abs() if absolute else residual.square()).mean(-1))


def _less(values: Grouped, mean: PerGroup) -> Grouped:
    return values - mean.unsqueeze(-1)
