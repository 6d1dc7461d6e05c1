"""Distillation of a learned variance: the second half of the output channels of DiT."""

from .output_kd import output_kd
from .reduction import Prediction, Reduction, Scalar
from .step import Step


def variance_kd(student: Prediction, teacher: Prediction, *, reduction: Reduction = "mean") -> Scalar:
    """Mean squared error between the variance channels alone `[B, C, *spatial]`, already cut from the 2C outputs.

    LIFT and PLACE act on the C prediction channels only; these follow the teacher directly. 0-d, >= 0; errors as
    `output_kd`.
    """
    return output_kd(student, teacher, norm="squared", reduction=reduction)


def term(step: Step) -> Scalar | None:
    """Whatever the method: the student's variance would stay noise without it."""
    return None if step.variance is None else variance_kd(*step.variance, reduction=step.knobs["reduction"])
