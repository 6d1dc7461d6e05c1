"""What holds for any outputs: the fit is least squares within its limits, PLACE a partition."""

from __future__ import annotations

import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor

from diffcompress.losses import lift, output_kd, place
from diffcompress.losses.fit import STEEPEST, fit_line

NUMBERS = st.floats(-1e3, 1e3, width=32)


@st.composite
def outputs(draw: st.DrawFn, count: int = 2, most: int = 40) -> tuple[Tensor, ...]:
    """`count` tensors `[B, C, N]` of one shape, float64; many of their numbers are equal, zero or tiny."""
    shape = draw(st.tuples(st.integers(1, 2), st.integers(1, 2), st.integers(1, most)))
    return tuple(torch.from_numpy(draw(arrays.arrays("float64", shape, elements=NUMBERS))) for _ in range(count))


def fitted(student: Tensor, teacher: Tensor):
    return fit_line(student.unsqueeze(2), teacher.unsqueeze(2), teacher.var(-1, correction=0))


@given(outputs())
def test_a_line_takes_no_more_than_the_error_and_no_steeper_slope_than_its_limit(pair):
    student, teacher = pair
    line = fitted(student, teacher)
    error = (teacher - student).square().mean(-1, keepdim=True)
    assert (line.residual + line.explained <= error * (1 + 1e-9) + 1e-9).all()
    assert (line.residual >= 0).all() and (line.explained >= 0).all()
    assert (line.tilt.abs() <= 1 + STEEPEST + 1e-6).all()
    again = (1 + line.tilt) * student + line.intercept - teacher
    torch.testing.assert_close(again.square().mean(-1, keepdim=True), line.residual, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(again.mean(-1), torch.zeros_like(again.mean(-1)), rtol=0, atol=1e-8)


@given(outputs(count=1))
def test_equal_outputs_are_exactly_the_identity(single):
    (output,) = single
    line = fitted(output, output)
    assert not any(part.any() for part in line)


@given(outputs(count=1), st.floats(-15.9, 15.9), NUMBERS)
def test_lines_are_found_unless_the_student_is_flat(single, slope, intercept):
    (student,) = single
    assume((student.std(-1, correction=0) > 1e-3 * (1 + student.abs().amax(-1))).all())
    line = fitted(student, slope * student + intercept)
    torch.testing.assert_close(1 + line.tilt, torch.full_like(line.tilt, slope), rtol=1e-6, atol=1e-6)
    # The intercept is that at 0, which may lie far outside of the student's values.
    off = (line.intercept - intercept).abs()
    assert (off <= 1e-6 * (1 + abs(intercept) + 17 * student.abs().amax(-1, keepdim=True))).all()


@given(outputs(), NUMBERS)
def test_what_is_added_to_the_teacher_is_added_to_the_intercept(pair, offset):
    student, teacher = pair
    before, after = fitted(student, teacher), fitted(student, teacher + offset)
    assume((student.var(-1, correction=0) > 1e-3).all())  # a flat group's floor grows with the rounding of its mean
    torch.testing.assert_close(after.tilt, before.tilt, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(after.intercept, before.intercept + offset, rtol=1e-6, atol=1e-5)


@given(outputs(count=1), st.integers(1, 50))
def test_every_element_is_in_one_group_and_the_groups_go_from_small_to_large_errors(single, group_size):
    """A student of zeros has no slope to fit: the intercepts are the groups' means, weighted the mean of all."""
    teacher = single[0].abs()
    terms = place(torch.zeros_like(teacher), teacher, group_size=group_size, norm="l1")
    number = max(1, teacher.shape[-1] // group_size)
    assert terms.intercept.shape == (*teacher.shape[:2], number)
    assert (terms.slope == 1).all()
    assert (terms.intercept.diff(dim=-1) >= -1e-9).all()
    torch.testing.assert_close(terms.coarse, teacher.mean(), rtol=1e-9, atol=1e-9)
    ordered = teacher.sort(-1).values
    ends = [(group + 1) * group_size for group in range(number - 1)] + [teacher.shape[-1]]
    expected = [ordered[..., start:end].mean(-1) for start, end in zip([0, *ends], ends, strict=False)]
    torch.testing.assert_close(terms.intercept, torch.stack(expected, -1), rtol=1e-9, atol=1e-9)


@given(st.data(), st.integers(1, 50))
def test_the_order_of_elements_does_not_matter(data, group_size):
    errors = data.draw(st.lists(st.floats(2**-10, 1e3, width=32), min_size=1, max_size=40, unique=True))  # no ties
    student = torch.tensor(data.draw(st.lists(NUMBERS, min_size=len(errors), max_size=len(errors)))).double()
    student, teacher = student[None, None], (student + torch.tensor(errors).double())[None, None]
    order = data.draw(st.permutations(range(len(errors))))
    options = {"group_size": group_size, "norm": "relative", "fine": "l1", "gate": "soft"}
    before, after = place(student, teacher, **options), place(student[..., order], teacher[..., order], **options)
    torch.testing.assert_close(after.loss, before.loss, rtol=1e-6, atol=1e-6)


@given(outputs(), st.sampled_from(["mean", "sum"]))
def test_the_two_ends_of_place_are_lift_and_l1(pair, reduction):
    student, teacher = pair
    elements = student.shape[-1]
    torch.testing.assert_close(
        place(student, teacher, group_size=elements, reduction=reduction).loss,
        lift(student, teacher, reduction=reduction).loss,
    )
    torch.testing.assert_close(
        place(student, teacher, group_size=1, norm="l1", reduction=reduction).loss,
        output_kd(student, teacher, norm="l1", reduction=reduction),
        rtol=1e-6,
        atol=1e-6,
    )
