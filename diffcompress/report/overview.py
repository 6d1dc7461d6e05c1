"""overview.html: several students of one teacher on one page, drawn from the files of their run folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from diffcompress.records.layout import FRONTIER, OVERVIEW
from diffcompress.records.metrics import Metric
from diffcompress.records.report import Report
from diffcompress.records.run_files import read_record, write_text
from diffcompress.records.run_folder import RunFolder
from diffcompress.report import figures, numbers
from diffcompress.report.page import template


def write_overview(folder: Path, runs: Sequence[RunFolder]) -> Path:
    """Write `folder`/overview.html about finished `runs`, with links to their reports; returns its path."""
    reports = [read_record(run.report_json, Report) for run in runs]
    rows = [
        {"report": report, "link": run.report_html.relative_to(folder).as_posix()}
        for run, report in zip(runs, reports, strict=True)
    ]
    # One figure for all: a student whose samples are not finite lacks it, and shows nothing in its place.
    known = {name: one for report in reports for name, one in report.metrics.items()}
    first = figures.headline(known)
    columns = dict.fromkeys([*([first[0].name] if first else []), "agreement", "failed_samples"])
    frontier = folder / FRONTIER
    drawn = template("overview.html.j2").render(
        rows=rows,
        columns=[(Metric.named(name), known.get(name)) for name in columns],
        w=numbers,
        teacher=reports[0].teacher,
        macs=known["macs"].teacher if "macs" in known else None,
        protocol=reports[0].protocol,
        frontier=Markup(frontier.read_text(encoding="utf-8", errors="replace")) if frontier.is_file() else None,
    )
    write_text(folder / OVERVIEW, drawn)
    return folder / OVERVIEW
