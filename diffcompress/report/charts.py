"""Which charts the report shows, made from the run's facts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from markupsafe import Markup

from diffcompress.records.evaluation import Measured, Value
from diffcompress.records.report import Report
from diffcompress.records.run_folder import RunFolder
from diffcompress.report import figures, numbers, reading
from diffcompress.report.svg import Bar, Series, Span, binned, interval_chart, line_chart

# column of metrics.jsonl: title, vertical axis in words, logarithmic?, ideal value
_TRAINING: dict[str, tuple[str, str, bool, float | None]] = {
    "loss": ("Loss", "training loss, log scale", True, None),
    "slope": ("Slope", "mean slope of the fitted line", False, 1.0),
    "intercept": ("Intercept", "mean intercept of the fitted line", False, 0.0),
    "fine_weight": ("Fine weight", "weight of the fine term", False, 1.0),
    "coarse": ("Coarse term", "coarse loss, log scale", True, None),
    "fine": ("Fine term", "fine loss, log scale", True, None),
    **{name: (title, f"{title.lower()}, log scale", True, None) for name, title in reading.LOSSES.items()},
    "grad_norm": ("Gradient norm", "norm before clipping, log scale", True, None),
    "learning_rate": ("Learning rate", "learning rate", False, None),
}
_LEVELS: dict[str, tuple[str, str, float | None]] = {
    "relative_error": ("Relative error", "root mean square error / teacher's", 0.0),
    "slope": ("Slope", "slope of teacher on student", 1.0),
    "intercept": ("Intercept", "intercept of teacher on student", 0.0),
}
_ROLES = {"real": "real images", "teacher": "teacher", "student": "student", "untrained": "untrained"}


@dataclass(frozen=True)
class Figure:
    title: str
    svg: Markup
    note: str = ""


def training(run: RunFolder, report: Report) -> list[Figure]:
    """One chart for each logged quantity, over the steps of all stages."""
    rows, spans, done = [], [], 0.0
    for stage in report.stages:
        own = reading.curves(run.path / stage.folder)
        if not own:
            continue
        # Steps count over all stages; a log that starts again at zero is laid behind the stage before it.
        shift = done if own[0]["step"] < done else 0.0
        rows += [row | {"step": row["step"] + shift} for row in own]
        spans.append(Span(stage.name, done, rows[-1]["step"]))
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


def agreement(metrics: Mapping[str, Measured]) -> list[Figure]:
    """Error, slope and intercept of the student against the teacher, over the noise levels."""
    levels = metrics["agreement"].levels if "agreement" in metrics else ()
    middle = [(level.timestep_low + level.timestep_high) / 2 for level in levels]
    found = []
    for key, (title, y_label, ideal) in _LEVELS.items():
        line = Series(title, "student", middle, [getattr(level, key) for level in levels])
        svg = line_chart(
            [line], x_label="timestep (clean to pure noise)", y_label=y_label, reference=ideal, points=True
        )
        if svg is not None:
            found.append(Figure(title, svg))
    return found


def quality(metrics: Mapping[str, Measured]) -> list[Figure]:
    """Teacher, student, untrained student and real images on one axis, for each quality figure.

    A student that the probe corrected stands beside itself.
    """
    found = []
    for metric, measured in figures.quality(metrics):
        kind, factor = metric.kind, 100.0 if metric.kind.told == "share" else 1.0
        rows = [(_ROLES[role], role, measured.of(role)) for role in _ROLES]
        mended = metrics.get(metric.mended.name)
        rows.insert(3, ("corrected", "corrected", None if mended is None else mended.of("student")))
        bars = [_bar(label, role, one, factor) for label, role, one in rows if one and numbers.is_number(one.value)]
        values = [bar.value for bar in bars]
        # Powers of ten suit distances; they would lay a student of half its teacher's coverage right beside it.
        log = measured.better == "lower" and bool(values) and min(values) > 0 and max(values) / min(values) > 30
        axis = "% of samples" if kind.told == "share" else kind.axis or measured.unit
        counted = f"{measured.samples:,} samples" if measured.samples else ""
        note = "; ".join(part for part in (numbers.better(measured.better), counted) if part)
        svg = interval_chart(bars, x_label=", ".join(filter(None, (axis, "log scale" if log else ""))), log=log)
        if svg is not None:
            found.append(Figure(metric.label, svg, note))
    return found


def _bar(label: str, role: str, one: Value, factor: float) -> Bar:
    ends: tuple[float | None, float | None] = (None, None)
    if one.low is not None and one.high is not None and numbers.is_number(one.low) and numbers.is_number(one.high):
        ends = (one.low * factor, one.high * factor)
    return Bar(label, role, one.known * factor, *ends)
