"""overview.html: several students of one teacher on one page, drawn from the files of their run folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from diffcompress.records.run_folder import RunFolder, read_json, write_text
from diffcompress.report import charts, numbers
from diffcompress.report.page import template

FILE, FRONTIER = "overview.html", "frontier.svg"


def write_overview(folder: Path, runs: Sequence[RunFolder]) -> Path:
    """Write `folder`/overview.html about finished `runs`, with links to their reports; returns its path."""
    reports = [read_json(run.report_json, kind=dict) for run in runs]
    rows = [
        {"report": report, "link": run.report_html.relative_to(folder).as_posix()}
        for run, report in zip(runs, reports, strict=True)
    ]
    # One figure for all: a student whose samples are not finite lacks it, and shows nothing in its place.
    known = {name: one for report in reports for name, one in report["metrics"].items()}
    columns = dict.fromkeys((charts.headline(known)[0], "agreement", "failed_samples"))
    svg = folder / FRONTIER
    drawn = template("overview.html.j2").render(
        rows=rows,
        columns={name: known.get(name) or {} for name in columns},
        w=numbers,
        teacher=reports[0]["teacher"],
        macs=(known.get("macs") or {}).get("teacher"),
        protocol=reports[0]["protocol"],
        frontier=_inline(svg) if svg.is_file() else None,
    )
    write_text(folder / FILE, drawn)
    return folder / FILE


def _inline(svg: Path) -> Markup:
    """The picture without the prologue that only a file of its own may have."""
    text = svg.read_text(encoding="utf-8")
    return Markup(text[text.index("<svg") :])
