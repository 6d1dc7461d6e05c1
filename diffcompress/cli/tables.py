"""Results as a person reads them: tables and short lines for stdout."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import yaml
from pydantic import BaseModel
from rich.table import Table

from diffcompress.records.evaluation import OTHERS, Evaluation, Measured, Value, Verdict
from diffcompress.records.planned import Planned
from diffcompress.records.report import Finding, PipelineSize, Shrunk
from diffcompress.records.units import count, duration, percent, size
from diffcompress.report.numbers import in_dtype, lacking


def number(value: Any) -> str:
    """A measured number in four digits, whole ones in full; "-" where nothing was measured."""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 10_000 else f"{value:,.0f}"
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def planned(rows: Sequence[Planned]) -> Table:
    """One line for each asked ratio."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("asked", "params", "ratio", "MACs", "MACs ratio", "denoiser", "pipeline", "peak memory", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        sizes = [_told(value, "B") for value in (row.size_bytes, row.pipeline_bytes, row.peak_memory_bytes)]
        shares = (_told(row.params), number(row.ratio), _told(row.macs), number(row.macs_ratio))
        time = duration(row.expected and row.expected.total)
        table.add_row(number(row.requested_ratio), *shares, *sizes, time)
    return table


def parts(rows: Sequence[Planned]) -> Table | None:
    """Every part of the pipeline with its bytes and its share, for each asked ratio; None without a pipeline."""
    rows = [row for row in rows if row.parts]
    if not rows:
        return None
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("part of the pipeline", no_wrap=True)
    for row in rows:
        table.add_column(f"at {number(row.requested_ratio)}", justify="right", no_wrap=True)
    shares = [{part.name: f"{size(part.bytes)}  {percent(part.share)}" for part in row.parts or ()} for row in rows]
    for name in shares[0]:
        table.add_row(name, *(one[name] for one in shares))
    table.add_row("whole", *(f"{size(row.pipeline_bytes)}  100 %" for row in rows))
    table.add_row("whole / teacher's", *(percent(row.pipeline_ratio) for row in rows))
    return table


def notes(rows: Sequence[Planned]) -> list[str]:
    """Every note once, the expected time among them; behind several rows with the ratio it belongs to."""
    rows = [
        row.model_copy(update={"notes": [*row.notes, row.expected.told()]}) if row.expected else row for row in rows
    ]
    shared = [note for note in rows[0].notes if all(note in row.notes for row in rows)]
    own = [f"{number(row.requested_ratio)}: {note}" for row in rows for note in row.notes if note not in shared]
    return [f"- {note}" for note in (*shared, *own)]


def shrunk(result: Shrunk) -> list[Any]:
    """Sizes, places and quality of a finished run."""
    student, teacher = result.student, result.teacher
    params = f"{count(student.params)} of {count(teacher.params)} parameters"
    facts = {
        "student": f"{params}, ratio {number(student.ratio)} (asked {number(student.requested_ratio)})",
        "pipeline": result.pipeline,
        **({"whole pipeline": _whole(result.whole)} if result.whole and result.whole.ratio else {}),
        "report": result.report,
        "time": "-" if result.seconds is None else duration(result.seconds),
    }
    causes = diagnosis(result.diagnosis)
    return [_facts(facts), "", _metrics(result.metrics), *(["", *causes] if causes else [])]


def diagnosis(findings: Iterable[Finding]) -> list[str]:
    """Why a run ended badly, a line for each cause."""
    return [f"diagnosis: {finding.sentence}" for finding in findings]


def _whole(told: PipelineSize) -> str:
    return f"{size(told.bytes)} of {size(told.teacher_bytes)}, ratio {number(told.ratio)}"


def evaluated(result: Evaluation) -> list[Any]:
    """Metrics, protocol and gates of one evaluation."""
    shown: list[Any] = [_metrics(result.metrics.measured), "", _protocol(result), *_not_computed([result])]
    if result.probe is not None:
        shown.append(f"probe: {result.probe.sentence}")
    shown += [f"{'passed' if gate.passed else 'MISSED'}  {verdict(gate)}" for gate in result.gates]
    return shown


def verdict(gate: Verdict) -> str:
    """A gate with what it was judged by."""
    return f"{gate.expr}  (value {number(gate.value)})" + (f": {gate.why}" if gate.why else "")


def compared(results: Sequence[Evaluation]) -> list[Any]:
    """Several students: a row for each metric, a column for each student, the teacher's beside; their one protocol."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("metric", no_wrap=True)
    teacher = results[0].teacher is not None
    for name in [result.student.name for result in results] + (["teacher"] if teacher else []):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("unit")
    for name in dict.fromkeys(name for result in results for name in result.metrics.measured):
        found = [result.metrics.get(name) for result in results]
        measured = next(one for one in found if one is not None)
        row = ["-" if one is None else _with_interval(one) + in_dtype(one, "student") for one in found]
        if teacher:
            row.append(_with_interval(measured.teacher) + in_dtype(measured, "teacher"))
        table.add_row(name, *row, measured.unit)
    shown: list[Any] = [table, "", _protocol(results[0]), *_not_computed(results)]
    best = [result.student.name for result in results if result.unbeaten]
    if best:
        shown.append(f"on the size-quality frontier: {', '.join(best)}")
    for result in results:
        if result.probe is not None:
            shown.append(f"{result.student.name}: {result.probe.sentence}")
    for result in results:
        for gate in result.gates:
            state = "passed" if gate.passed else "MISSED"
            shown.append(f"{state}  {result.student.name}  {verdict(gate)}")
    return shown


def _protocol(result: Evaluation) -> Table:
    told = result.protocol.to_json()
    return _facts({name: value for name, value in told.items() if isinstance(value, (str, int, float))})


def _not_computed(results: Sequence[Evaluation]) -> list[str]:
    """Every reason once; where it does not hold for all students, with the names of those it holds for."""
    found: dict[str, list[str]] = {}
    for result in results:
        for line in lacking(result.metrics.not_computed):
            found.setdefault(line, []).append(result.student.name)
    return [
        f"not computed{'' if len(names) == len(results) else ' for ' + ', '.join(names)}: {line}"
        for line, names in found.items()
    ]


def _with_interval(told: Measured | Value | None) -> str:
    if told is None:
        return "-"
    return number(told.value) + (
        "" if told.low is None or told.high is None else f" [{number(told.low)}, {number(told.high)}]"
    )


def annotated(section: BaseModel, indent: int = 0) -> Iterator[str]:
    """A recipe as YAML lines, each value with its meaning as a comment."""
    pad = " " * indent
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        comment = f"  # {field.description}" if field.description else ""
        if isinstance(value, BaseModel):
            yield f"{pad}{name}:{comment}"
            yield from annotated(value, indent + 2)
        elif isinstance(value, tuple) and value and isinstance(value[0], BaseModel):
            yield f"{pad}{name}:{comment}"
            for item in value:
                first, *others = annotated(item, indent + 4)
                yield f"{pad}  - {first.strip()}"
                yield from others
        else:
            plain = list(value) if isinstance(value, tuple) else value
            text = yaml.safe_dump(plain, default_flow_style=True, width=10_000, allow_unicode=True)
            yield f"{pad}{name}: {text.removesuffix('...' + chr(10)).strip()}{comment}"


def _facts(facts: dict[str, Any]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(name.replace("_", " "), str(value))
    return table


def _metrics(metrics: Mapping[str, Measured]) -> Table:
    """One line for each metric: the student's value with its interval, beside the same of the other models."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("metric", no_wrap=True)
    for name in ("student", "95 % interval", *OTHERS):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("unit")
    for name, told in metrics.items():
        interval = "" if told.low is None or told.high is None else f"{number(told.low)} .. {number(told.high)}"
        values = [(role, told.of(role)) for role in OTHERS]
        beside = [number(one and one.value) + in_dtype(told, role) for role, one in values]
        table.add_row(name, number(told.value) + in_dtype(told, "student"), interval, *beside, told.unit)
    return table


def _told(value: float | None, unit: str = "") -> str:
    return "-" if value is None else count(value, unit)
