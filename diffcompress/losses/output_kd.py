"""Plain output distillation, the baseline that LIFT and PLACE are measured against."""

from typing import Literal

from .reduction import Prediction, Reduction, Scalar, one_of, precise, root, size_factor

Norm = Literal["squared", "l1", "rms"]


def output_kd(
    student: Prediction,
    teacher: Prediction,
    *,
    norm: Norm = "squared",
    reduction: Reduction = "mean",
) -> Scalar:
    """Distance between two predictions `[B, C, *spatial]`, 0-d, >= 0.

    `squared`: mean `(s - t)^2`; `l1`: mean `|s - t|`; `rms`: the root of each sample's mean square, averaged over the
    batch, so that a sample's gradient does not fade with its error (0 at zero error). `sum` is `mean` times the
    elements of a sample. Computed in float32 or better, the teacher without gradient. Raises ValueError for shapes that
    differ, an empty output, and an unknown norm or reduction.
    """
    one_of("norm", norm, Norm)
    factor = size_factor(reduction, student)
    s, t = precise(student, teacher)
    error = (s - t).flatten(1)
    if norm == "l1":
        return factor * error.abs().mean()
    mean_square = error.square().mean(1)
    return factor * (root(mean_square) if norm == "rms" else mean_square).mean()
