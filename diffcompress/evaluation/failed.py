"""Failed samples: a collapsed student leaves noise where an image should be, and noise has a huge total variation."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from diffcompress.evaluation.frechet import share_estimate
from diffcompress.evaluation.material import Material
from diffcompress.records.evaluation import Metrics
from diffcompress.records.metrics import Estimate, Metric

QUANTILE = 0.999


def add_metrics(material: Material, wanted: Sequence[Metric], metrics: Metrics) -> None:
    """The share of each model's samples; about one in a thousand of the teacher's own."""
    drawn = material.drawn
    teacher = drawn["teacher"].variation
    variation = {role: one.variation for role, one in drawn.items()}
    share = partial(failed_share, teacher_variation=teacher)
    found = {role: share(value) for role, value in variation.items()}
    for metric in wanted:
        metrics.add(metric, found, as_many=material.as_many(variation, share), **material.counted)


def failed_share(variation: Tensor, teacher_variation: Tensor) -> Estimate:
    """Share of samples above the teacher's 99.9th percentile."""
    return share_estimate(variation.double() > torch.quantile(teacher_variation.double(), QUANTILE))
