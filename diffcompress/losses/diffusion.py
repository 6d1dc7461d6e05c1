"""The denoising loss: the student against the noise (velocity, flow, clean image) itself instead of the teacher."""

from .reduction import PerSample, Prediction, Reduction, Scalar, precise, size_factor
from .step import Step


def diffusion(
    student: Prediction,
    target: Prediction,
    weight: PerSample | None = None,
    reduction: Reduction = "mean",
) -> Scalar:
    """Mean of `weight * (s - target)^2`, 0-d, >= 0; computed in float32 or better, target without gradient.

    `weight`: one per sample, for instance by noise level; None is 1. `sum` is `mean` times the elements of a sample.
    Raises ValueError for shapes that differ, an empty output, an unknown reduction, and a weight that is not `[B]`.
    """
    factor = size_factor(reduction, student)
    s, t = precise(student, target)
    error = (s - t).square().flatten(1).mean(1)
    if weight is not None:
        if weight.shape != error.shape:
            raise ValueError(f"weight shape {tuple(weight.shape)} differs from ({len(error)},), one weight per sample")
        error = error * weight.to(error.dtype)
    return factor * error.mean()


def term(step: Step) -> Scalar:
    assert step.diffusion_target is not None
    return diffusion(step.prediction, step.diffusion_target, reduction=step.knobs["reduction"])
