"""Reasons to doubt a result: told beside it, by every job."""

from __future__ import annotations

from diffcompress.records.evaluation import Measured, Metrics, Value
from diffcompress.records.metrics import Metric

# Of the error while the teacher samples; trained students have less than one of it on their own states.
DRIFT = 1.2


def doubts(metrics: Metrics) -> list[str]:
    """All that there are."""
    return [*beats_teacher(metrics), *drifts(metrics)]


def drifts(metrics: Metrics) -> list[str]:
    """A sentence where the student errs surely more on the states that it comes to than on those of its teacher."""
    own, theirs = metrics.get("agreement_own_states"), metrics.get("agreement_teacher_states")
    if own is None or theirs is None or own.high is None or theirs.low is None:
        return []
    more = (1 - own.known) / max(1 - theirs.known, 1e-12)
    if more < DRIFT or own.high >= theirs.low:
        return []
    return [
        f"on the states that the student itself comes to while it samples its error is {more:.3g} times that on its "
        "teacher's: errors add up where no target shows it the way, before samples look worse"
    ]


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
