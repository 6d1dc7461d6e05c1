"""How far the student's image is from its teacher's of the same noise."""

from __future__ import annotations

from collections.abc import Sequence

from diffcompress.evaluation.frechet import mean_estimate
from diffcompress.evaluation.material import Material
from diffcompress.records.evaluation import Metrics
from diffcompress.records.metrics import Metric


def add_metrics(material: Material, wanted: Sequence[Metric], metrics: Metrics) -> None:
    """Root of the mean squared difference of all pixels, averaged over samples."""
    drawn = material.drawn
    teacher = drawn["teacher"]
    if drawn["student"].num_broken:
        metrics.skip((one.name for one in wanted), f"{drawn['student'].num_broken} samples are not finite")
        return
    apart = {
        role: mean_estimate(
            (one.pixels - teacher.pixels).square().flatten(1).mean(1).sqrt(), seed=material.protocol.seed
        )
        for role, one in drawn.items()
        if role != "teacher" and not one.num_broken
    }
    for metric in wanted:
        metrics.add(metric, apart, samples=len(teacher.pixels))
