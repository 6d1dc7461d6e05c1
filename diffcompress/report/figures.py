"""Which of a run's metrics are told where."""

from __future__ import annotations

from collections.abc import Mapping

from diffcompress.records.evaluation import Measured
from diffcompress.records.metrics import KINDS, Metric

# What is looked at first, where it was measured; a distance to real images says more than one to the teacher's.
_FIRST = (KINDS["fid"], KINDS["fd"], KINDS["fd_teacher"], KINDS["agreement"], KINDS["paired_distance"])


def quality(metrics: Mapping[str, Measured]) -> list[tuple[Metric, Measured]]:
    """How good the student is that ships; what the probe corrected is told beside, not among these."""
    return [(metric, one) for metric, one in named(metrics) if not (metric.kind.is_cost or metric.corrected)]


def costs(metrics: Mapping[str, Measured]) -> list[tuple[Metric, Measured]]:
    return [(metric, one) for metric, one in named(metrics) if metric.kind.is_cost]


def is_corrected(metrics: Mapping[str, Measured]) -> bool:
    """Whether there is anything from the probe."""
    return any(metric.corrected for metric, _ in named(metrics))


def is_perceptual(metrics: Mapping[str, Measured]) -> bool:
    """Whether anything says how good the images look."""
    return any(metric.kind.is_perceptual for metric, _ in named(metrics))


def headline(metrics: Mapping[str, Measured]) -> tuple[Metric, Measured] | None:
    """The one quality figure for the top of the page: distance to real images, else to the teacher, else agreement."""

    def rank(told: tuple[Metric, Measured]) -> int:
        return _FIRST.index(told[0].kind)

    plain = [told for told in quality(metrics) if told[0].is_headline and told[0].kind in _FIRST]
    return min(plain, key=rank, default=None)


def named(metrics: Mapping[str, Measured]) -> list[tuple[Metric, Measured]]:
    """Every value beside the metric that its name stands for."""
    return [(Metric.named(name), one) for name, one in metrics.items()]
