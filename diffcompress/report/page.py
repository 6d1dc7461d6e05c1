"""report.html, report.json and the model card, redrawn from the files of a run folder alone."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, Template, select_autoescape
from PIL import Image, UnidentifiedImageError

from diffcompress.errors import DamagedError
from diffcompress.records import layout
from diffcompress.records.report import Report
from diffcompress.records.request import seed_of
from diffcompress.records.run_files import read_tensors, write_json, write_text
from diffcompress.records.run_folder import RunFolder
from diffcompress.report import card, charts, figures, numbers, reading, trust
from diffcompress.report.sheets import grid

SHEET_SAMPLES, SHEET_COLUMNS = 48, 8
MOST_PREVIEWS = 6
ROLES = {"teacher": "Teacher", "student": "Student", "untrained": "Student before training"}


def write_report(run: RunFolder) -> Report:
    """Write report.html, report.json and, if the pipeline is exported, its model card; return report.json's content.

    Raises UsageError when `run` is not a run folder. Whatever is missing in it is reported as not computed.
    """
    report = reading.collect(run)
    pictures = sheets(run, report.not_computed)
    broken = [file.name for file in run.previews() if not _is_picture(file)]
    report.not_computed.extend(f"samples while it trained: {layout.SAMPLES}/{name} is damaged" for name in broken)
    if report.provenance:
        card.write(run.pipeline, report.provenance, report)
    write_text(run.report_html, html(run, report, pictures))
    write_json(run.report_json, report.to_json())
    return report


def html(run: RunFolder, report: Report, pictures: dict[str, str]) -> str:
    """The page: one file that refers to nothing outside itself."""
    metrics = report.metrics
    return template("report.html.j2").render(
        f=report,
        w=numbers,
        sheets=[{"role": role, "title": ROLES[role], "uri": pictures[role]} for role in ROLES if role in pictures],
        previews=previews(run),
        training=charts.training(run, report),
        levels=charts.agreement(metrics),
        charts_of_quality=charts.quality(metrics),
        quality=figures.quality(metrics),
        costs=figures.costs(metrics),
        corrected=figures.is_corrected(metrics),
        headline=figures.headline(metrics),
        remarks=trust.remarks(report),
        counts=trust.counts(metrics),
        seed=seed_of(report.asked),
        use=card.usage(report.provenance, report.pipeline or card.ELSEWHERE) if report.provenance else "",
    )


def template(name: str) -> Template:
    """Of a page that a browser shows: what is put into it is escaped, and what it lacks is an error."""
    environment = Environment(
        loader=PackageLoader("diffcompress.report"),
        autoescape=select_autoescape(["j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def sheets(run: RunFolder, not_computed: list[str]) -> dict[str, str]:
    """Data URIs of the sample sheets by role; a line in `not_computed` for each that is missing."""
    found = {}
    for role in ROLES:
        path = run.samples_of(role)
        try:
            picture = grid(read_tensors(path, finite=False)["images"][:SHEET_SAMPLES], SHEET_COLUMNS)
        except (OSError, DamagedError, KeyError, ValueError):
            if role != "untrained":
                not_computed.append(f"sample sheet of the {role}: no readable {path.relative_to(run.path).as_posix()}")
            continue
        buffer = io.BytesIO()
        # Drawn at twice the size: browsers scale small pictures more evenly from there.
        picture.resize((picture.width * 2, picture.height * 2), resample=0).save(buffer, format="PNG", optimize=True)
        found[role] = _data_uri(buffer.getvalue())
    return found


def previews(run: RunFolder) -> list[dict[str, str]]:
    """Samples drawn during training, at most MOST_PREVIEWS of them evenly spread, the last always among them."""
    files = [file for file in run.previews() if _is_picture(file)]
    if len(files) > MOST_PREVIEWS:
        files = [files[round(i * (len(files) - 1) / (MOST_PREVIEWS - 1))] for i in range(MOST_PREVIEWS)]
    return [{"step": _step(file), "uri": _data_uri(file.read_bytes())} for file in files]


def _is_picture(file: Path) -> bool:
    try:
        with Image.open(file) as picture:
            picture.verify()
    except (OSError, SyntaxError, UnidentifiedImageError):
        return False
    return True


def _step(file: Path) -> str:
    digits = layout.step_of(file)
    return f"step {int(digits):,}" if digits.isdigit() else digits


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
