"""The metrics of one evaluation: their names, what each record holds, and what was not computed and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, NamedTuple

# Feature spaces by name.
KNOWN = ("demo", "inception", "dinov2", "clip")
ROLES = ("student", "teacher", "untrained")
COSTS = ("params", "size_bytes", "macs", "latency_ms", "latency_ms_batch16", "memory_bytes")
# In a feature space: to real images, and the student's samples to the teacher's.
DISTANCES = ("fd", "kd")
TO_TEACHER = ("fd_teacher", "kd_teacher")
NEIGHBOURS = ("precision", "recall", "density", "coverage")
SAMPLE_CHECKS = ("failed_samples", "paired_distance")
SHARES = ("agreement", "failed_samples", "precision", "recall", "coverage")  # never above 1
PROBE = "probe"  # what every `<name>_corrected` comes from
NO_TEACHER = "no teacher was given: name it with --teacher"


class Estimate(NamedTuple):
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float


def metric_names(space: str | None = None) -> tuple[str, ...]:
    """All metrics that an evaluation may compute, `space` beside the known feature spaces; gates know these names.

    A distance or neighbour metric without its space's name (`fd`) means that of the space that is used.
    """
    names = [*COSTS, "agreement", *DISTANCES, *TO_TEACHER, *NEIGHBOURS, "fid", "clip_score"]
    names += SAMPLE_CHECKS
    names += [f"{name}_corrected" for name in ("fid", *DISTANCES, *TO_TEACHER, *SAMPLE_CHECKS)]
    for one in dict.fromkeys([*KNOWN, *([space] if space else [])]):
        distances = [f"{name}_{one}" for name in (*DISTANCES, *TO_TEACHER)]
        names += [*distances, f"fd_{one}_held_out", *(f"{name}_{one}" for name in NEIGHBOURS)]
        names += [f"{name}_corrected" for name in distances]
    return tuple(names)


def full_name(name: str, computed: Mapping[str, Any], space: str | None) -> str:
    """The metric that `name` means among those `computed` in a space: `fd` is `fd_demo`, or `fid` where so called."""
    if name in computed or space is None:
        return name
    stem, corrected = (name.removesuffix("_corrected"), "_corrected") if name.endswith("_corrected") else (name, "")
    if stem in ("fd", f"fd_{space}") and f"fid{corrected}" in computed:
        return f"fid{corrected}"
    return f"{stem}_{space}{corrected}" if stem in (*DISTANCES, *TO_TEACHER, *NEIGHBOURS) else name


@dataclass
class Metrics:
    """Metrics of one evaluation, and what was not computed and why."""

    values: dict[str, dict[str, Any]] = field(default_factory=dict)
    missing: list[dict[str, str]] = field(default_factory=list)

    def add(self, name: str, unit: str, better: str | None, found: Mapping[str, Estimate | float], **more: Any) -> None:
        """`found`: this metric by role (student, teacher, untrained, real). Values that are not finite are not kept.

        The role "corrected" (the student behind its two coefficients) becomes a metric of its own, `<name>_corrected`.
        """
        parts = {role: _parts(value) for role, value in found.items() if isfinite(_parts(value)["value"])}
        if "student" not in parts:
            self.skip((name,), "the student's outputs are not finite")
            return
        student, corrected = parts.pop("student"), parts.pop("corrected", None)
        others: dict[str, Any] = {role: parts.get(role) for role in ("teacher", "untrained", "real")}
        self.values[name] = {**student, "unit": unit, "better": better, **others, **more}
        if corrected is not None:
            others["untrained"] = None
            self.values[f"{name}_corrected"] = {**corrected, "unit": unit, "better": better, **others, **more}

    def skip(self, names: tuple[str, ...], why: str) -> None:
        self.missing += [{"metric": name, "why": why} for name in names]

    def to_json(self) -> dict[str, Any]:
        return {**self.values, "not_computed": self.missing}


def _parts(value: Estimate | float) -> dict[str, Any]:
    if isinstance(value, Estimate):
        return value._asdict()
    return {"value": value, "low": None, "high": None}
