"""Reasons to doubt a result: told beside it, by every job."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffcompress.records.metrics import COSTS

_DISTANCES = ("fid", "fd_", "kd_")
_NOT_TO_REAL = ("fd_teacher_", "kd_teacher_")
_CHECKS = ("_held_out", "_corrected")


def beats_teacher(metrics: Mapping[str, Any]) -> list[str]:
    """A sentence for each quality in which the student scores better than its teacher, who it was made from.

    Distances to real images at any size; other qualities only where the intervals leave no doubt.
    """
    found = []
    for name, metric in metrics.items():
        if name in COSTS or not isinstance(metric, Mapping) or name.endswith(_CHECKS):
            continue
        teacher = metric.get("teacher")
        if teacher is None or metric["value"] is None or teacher["value"] is None:
            continue
        sign = 1 if metric["better"] == "lower" else -1
        distance = name.startswith(_DISTANCES) and not name.startswith(_NOT_TO_REAL)
        if sign * metric["value"] < sign * teacher["value"] and (distance or not _overlap(metric, teacher)):
            found.append(
                f"the student scores better than its teacher in {name}: look at the samples before believing it"
            )
    return found


def _overlap(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    if one.get("low") is None or other.get("low") is None:
        return True
    return bool(one["low"] <= other["high"] and other["low"] <= one["high"])
