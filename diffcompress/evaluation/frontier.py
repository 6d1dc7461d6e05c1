"""Size against quality over several students: which are beaten by none."""

from __future__ import annotations

from collections.abc import Sequence

from diffcompress.records.evaluation import Evaluation
from diffcompress.records.metrics import full_name

# The first that all students have is plotted.
QUALITIES = ("fid", "fd", "fd_teacher", "kd", "kd_teacher", "agreement", "paired_distance", "failed_samples")


def quality(results: Sequence[Evaluation]) -> str | None:
    """The metric that all `results` (of one protocol) have in common and that tells most about quality."""
    space = results[0].protocol.feature_space
    for wanted in QUALITIES:
        name = full_name(wanted, results[0].metrics, space)
        measured = [result.metrics.get(name) for result in results]
        if all(one is not None and one.value is not None for one in measured):
            return name
    return None


def unbeaten(results: Sequence[Evaluation], metric: str) -> list[bool]:
    """Whether no other result is as small and as good, and better in one of the two."""
    points = []
    for result in results:
        measured = result.metrics[metric]
        sign = 1 if measured.better == "lower" else -1
        points.append((result.metrics["params"].known, sign * measured.known))
    return [not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points) for p in points]
