"""LIFT: linear fitting, "LIFT and PLACE", Han, Yeo, Yoo, CVPR 2026, arXiv 2605.19729."""

from .fit import fit_line, flat_outputs
from .reduction import Prediction, Reduction, size_factor
from .step import Step
from .terms import Fine, Gate, LossTerms, Norm, ReduceMean, identity, weigh


def lift(
    student: Prediction,
    teacher: Prediction,
    *,
    norm: Norm = "l1",
    reduction: Reduction = "mean",
    reduce_mean: ReduceMean = identity,
    fine: Fine = "squared",
    gate: Gate = "global",
    coarse_weight: float = 1.0,
    power: float = 1.0,
) -> LossTerms:
    """Split the error into what a line per sample and channel explains (coarse) and a gated rest (fine).

    `a = cov(s, t) / var(s)`, `b = mean(t) - a * mean(s)` over the N spatial elements (slope and intercept);
    `loss = rho(a - 1) + rho(b) + w * (sg(a) * s + sg(b) - t)^2` with `w = sg(1 - min(1, mean|a - 1| + mean|b|))`.

    Args:
        student: raw predictions `[B, C, *spatial]`, any spatial rank >= 1, any float type; computed in float32, or
            float64 if either is.
        teacher: the same of the teacher, which gets no gradient.
        norm: rho, "l1" (pixel and Stable Diffusion U-Nets) or "squared" (DiT); variants of ours:
            "explained", the mean square of what the line explains, and "relative", that against what it leaves, in
            units of the outputs. The gate is always of absolute values.
        reduction: "mean" over everything, or "sum" over all but the batch: the same times the C * N elements of a
            sample.
        reduce_mean: averages a 0-d tensor over processes holding equal batches, so that all use one gate; no gradient
            passes it.
        fine: "squared" as published; variants of ours: "relative", the root of each sample's mean squared residual,
            and "l1", the mean absolute residual.
        gate: "global" as published; variants of ours: "per_sample", each sample gated by its own distance, no mixing,
            and "soft", `w = sg(1 / (1 + mean|a - 1| + mean|b|))`, which never shuts.
        coarse_weight: factor on the coarse term in `loss` alone, for a schedule that anneals it.
        power: a variant of ours: each sample's loss is raised to it, so that with squared terms 0.5 weighs samples as
            their root mean square does, and 1, as published, those with large errors (low noise) much more.

    Returns LossTerms, slope and intercept `[B, C, 1]`. Raises ValueError for shapes that differ or lack a spatial
    axis, for an empty output, and for an unknown norm, reduction, fine or gate. Never waits for the device.
    """
    factor = size_factor(reduction, student)
    s, t = flat_outputs(student, teacher)
    line = fit_line(s.unsqueeze(2), t.unsqueeze(2), t.var(-1, correction=0), absolute=fine == "l1")
    return weigh(
        line,
        s.new_ones(1),
        factor,
        norm=norm,
        fine=fine,
        gate=gate,
        coarse_weight=coarse_weight,
        power=power,
        reduce_mean=reduce_mean,
    )


def term(step: Step) -> LossTerms:
    return lift(step.prediction, step.target, **step.by_lines)
