"""Reasons to doubt a result: told beside it, by every job."""

from __future__ import annotations

from diffcompress.records.evaluation import Measured, Metrics, Value
from diffcompress.records.metrics import Metric


def beats_teacher(metrics: Metrics) -> list[str]:
    """A sentence for each quality in which the student scores better than its teacher, who it was made from.

    Distances to real images at any size; other qualities only where the intervals leave no doubt.
    """
    found = []
    for name, measured in metrics.measured.items():
        metric, teacher = Metric.named(name), measured.teacher
        if metric.kind.is_cost or not metric.is_headline or teacher is None:
            continue
        if measured.value is None or teacher.value is None:
            continue
        sign = 1 if measured.better == "lower" else -1
        sure = metric.kind.is_distance_to_real or not _overlap(measured, teacher)
        if sign * measured.value < sign * teacher.value and sure:
            found.append(
                f"the student scores better than its teacher in {name}: look at the samples before believing it"
            )
    return found


def _overlap(one: Measured, other: Value) -> bool:
    if one.low is None or one.high is None or other.low is None or other.high is None:
        return True
    return one.low <= other.high and other.low <= one.high
