"""How much samples differ from each other: those of a student that fell into an average are all alike."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from diffcompress.evaluation.frechet import mean_estimate
from diffcompress.evaluation.material import Material
from diffcompress.records.evaluation import Metrics
from diffcompress.records.metrics import Estimate, Metric


def add_metrics(material: Material, wanted: Sequence[Metric], metrics: Metrics) -> None:
    """Variance of pixels over the samples of a model, over that of its teacher's samples of the same noise."""
    drawn, seed = material.drawn, material.protocol.seed
    if drawn["student"].num_broken:
        metrics.skip((one.name for one in wanted), f"{drawn['student'].num_broken} samples are not finite")
        return
    if len(drawn["teacher"].pixels) < 2:
        metrics.skip((one.name for one in wanted), "one sample differs from no other")
        return
    whole = {role: one.pixels for role, one in drawn.items() if not one.num_broken}
    others = whole.keys() - {"teacher", "corrected"}
    found = {role: variance(whole[role], whole["teacher"], seed) for role in sorted(others)}
    for metric in wanted:
        metrics.add(metric, found, samples=len(whole["teacher"]))


def variance(pixels: Tensor, teacher: Tensor, seed: int = 0) -> Estimate:
    """Mean over all pixels of the variance over `[N, C, *spatial]` samples, over the teacher's."""
    ours, theirs = (_apart(one) for one in (pixels, teacher))
    return mean_estimate(ours / theirs.mean().clamp(min=1e-12), seed=seed)


def _apart(pixels: Tensor) -> Tensor:
    """Of each sample `[N]`: its mean squared distance from the mean sample, which costs one of N."""
    whole = pixels.double()
    return (whole - whole.mean(0)).square().flatten(1).mean(1) * len(whole) / (len(whole) - 1)
