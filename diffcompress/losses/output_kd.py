"""Plain output distillation, the baseline that LIFT and PLACE are measured against."""

from typing import Literal

from .reduction import Prediction, Reduction, Scalar, one_of, precise, raised, size_factor
from .step import Step

Norm = Literal["squared", "l1", "rms"]


def output_kd(
    student: Prediction,
    teacher: Prediction,
    *,
    norm: Norm = "squared",
    reduction: Reduction = "mean",
    power: float = 1.0,
) -> Scalar:
    """Distance between two predictions `[B, C, *spatial]`, 0-d, >= 0.

    `squared`: mean `(s - t)^2`; `l1`: mean `|s - t|`; `rms`: the root of each sample's mean square, averaged over the
    batch, so that a sample's gradient does not fade with its error (0 at zero error). `sum` is `mean` times the
    elements of a sample. `power`: each sample's distance is raised to it before the mean over samples. Computed in
    float32 or better, the teacher without gradient. Raises ValueError for shapes that differ, an empty output, and an
    unknown norm or reduction.
    """
    one_of("norm", norm, Norm)
    factor = size_factor(reduction, student)
    s, t = precise(student, teacher)
    error = (s - t).flatten(1)
    distance = (error.abs() if norm == "l1" else error.square()).mean(1)
    return factor * raised(distance, 0.5 * power if norm == "rms" else power).mean()


def term(step: Step) -> Scalar:
    norm, reduction, power = (step.knobs[name] for name in ("output_norm", "reduction", "power"))
    return output_kd(step.prediction, step.target, norm=norm, reduction=reduction, power=power)
