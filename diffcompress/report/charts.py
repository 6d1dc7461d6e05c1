"""Which charts the report shows, made from the run's facts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from diffcompress.records.run_folder import RunFolder
from diffcompress.report import numbers, reading
from diffcompress.report.svg import Bar, Series, Span, binned, interval_chart, line_chart

# column of metrics.jsonl: title, vertical axis in words, logarithmic?, ideal value
_TRAINING: dict[str, tuple[str, str, bool, float | None]] = {
    "loss": ("Loss", "training loss, log scale", True, None),
    "slope": ("Slope", "mean slope of the fitted line", False, 1.0),
    "intercept": ("Intercept", "mean intercept of the fitted line", False, 0.0),
    "fine_weight": ("Fine weight", "weight of the fine term", False, 1.0),
    "coarse": ("Coarse term", "coarse loss, log scale", True, None),
    "fine": ("Fine term", "fine loss, log scale", True, None),
    "output_kd": ("Output distillation", "output loss, log scale", True, None),
    "feature_kd": ("Feature distillation", "feature loss, log scale", True, None),
    "diffusion": ("Diffusion loss", "diffusion loss, log scale", True, None),
    "grad_norm": ("Gradient norm", "norm before clipping, log scale", True, None),
    "learning_rate": ("Learning rate", "learning rate", False, None),
}
_LEVELS: dict[str, tuple[str, str, float | None]] = {
    "relative_error": ("Relative error", "root mean square error / teacher's", 0.0),
    "slope": ("Slope", "slope of teacher on student", 1.0),
    "intercept": ("Intercept", "intercept of teacher on student", 0.0),
}
_UNITS = {"agreement": "1 = equal predictions"}
_ROLES = {"real": "real images", "teacher": "teacher", "student": "student", "untrained": "untrained"}


@dataclass(frozen=True)
class Figure:
    title: str
    svg: Markup
    note: str = ""


def training(run: RunFolder, collected: Mapping[str, Any]) -> list[Figure]:
    """One chart for each logged quantity, over the steps of all stages."""
    rows, spans, done = [], [], 0.0
    for stage in collected["stages"]:
        own = reading.curves(run.path / stage["folder"])
        if not own:
            continue
        # Steps count over all stages; a log that starts again at zero is laid behind the stage before it.
        shift = done if own[0]["step"] < done else 0.0
        rows += [row | {"step": row["step"] + shift} for row in own]
        spans.append(Span(stage["name"], done, rows[-1]["step"]))
        done = rows[-1]["step"]
    found = []
    for key, (title, y_label, log, ideal) in _TRAINING.items():
        points = [(row["step"], row[key]) for row in rows if key in row]
        if not points or not any(value for _, value in points):
            continue
        x, y = zip(*points, strict=True)
        svg = line_chart(
            [binned(x, y, title, "student")],
            x_label="training step",
            y_label=y_label,
            log=log,
            reference=ideal,
            spans=spans,
        )
        if svg is not None:
            found.append(Figure(title, svg))
    return found


def agreement(metrics: Mapping[str, Any]) -> list[Figure]:
    """Error, slope and intercept of the student against the teacher, over the noise levels."""
    levels = (metrics.get("agreement") or {}).get("levels") or []
    middle = [(level["timestep_low"] + level["timestep_high"]) / 2 for level in levels]
    found = []
    for key, (title, y_label, ideal) in _LEVELS.items():
        line = Series(title, "student", middle, [level.get(key) for level in levels])
        svg = line_chart(
            [line], x_label="timestep (clean to pure noise)", y_label=y_label, reference=ideal, points=True
        )
        if svg is not None:
            found.append(Figure(title, svg))
    return found


def headline(metrics: Mapping[str, Any]) -> tuple[str, Mapping[str, Any] | None]:
    """The one quality figure for the top of the page: distance to real images, else to the teacher, else agreement."""
    plain = [name for name in metrics if not name.endswith(("_held_out", "_corrected"))]
    for stem in ("fid", "fd_teacher", "agreement", "paired_distance"):
        if stem == "fd_teacher" and (to_real := [n for n in plain if n == "fd" or _is_to_real(n)]):
            return to_real[0], metrics[to_real[0]]
        for name in plain:
            if name == stem or name.startswith(f"{stem}_"):
                return name, metrics[name]
    return "quality", None


def _is_to_real(name: str) -> bool:
    return name.startswith("fd_") and not name.startswith("fd_teacher")


def quality(metrics: Mapping[str, Any]) -> list[Figure]:
    """Teacher, student, untrained student and real images on one axis, for each quality figure.

    A student that the probe corrected stands beside itself.
    """
    found = []
    for name, metric in metrics.items():
        if numbers.is_cost(metric) or numbers.is_corrected(name):
            continue
        rows = [(_ROLES[role], role, metric if role == "student" else metric.get(role)) for role in _ROLES]
        rows.insert(3, ("corrected", "corrected", metrics.get(f"{name}_corrected")))
        shares = metric.get("unit") == "share of samples"
        bars = [
            _bar(label, role, one, 100.0 if shares else 1.0)
            for label, role, one in rows
            if one and numbers.is_number(one["value"])
        ]
        values = [bar.value for bar in bars]
        # Powers of ten suit distances; they would lay a student of half its teacher's coverage right beside it.
        log = metric.get("better") == "lower" and bool(values) and min(values) > 0 and max(values) / min(values) > 30
        unit = "% of samples" if shares else metric.get("unit") or _UNITS.get(name, "")
        note = "; ".join(part for part in (numbers.better(metric.get("better")), _counted(metric)) if part)
        svg = interval_chart(bars, x_label=", ".join(filter(None, (unit, "log scale" if log else ""))), log=log)
        if svg is not None:
            found.append(Figure(numbers.label(name), svg, note))
    return found


def _counted(metric: Mapping[str, Any]) -> str:
    return f"{metric['samples']:,} samples" if metric.get("samples") else ""


def _bar(label: str, role: str, one: Mapping[str, Any], factor: float) -> Bar:
    low, high = one.get("low"), one.get("high")
    ends = (low * factor, high * factor) if numbers.is_number(low) and numbers.is_number(high) else (None, None)  # type: ignore[operator]
    return Bar(label, role, one["value"] * factor, *ends)
