"""A finished run that is asked for again: answered from its folder, without loading teacher, bank or student."""

from __future__ import annotations

from diffcompress.errors import DamagedError
from diffcompress.images.hub_images import is_id
from diffcompress.jobs.request import Request
from diffcompress.records.fingerprints import is_sound
from diffcompress.records.provenance import Provenance
from diffcompress.records.report import Report, Shrunk
from diffcompress.records.run_files import read_record
from diffcompress.records.run_folder import RunFolder
from diffcompress.report import reading
from diffcompress.runtime import Progress
from diffcompress.sources.licence import licence_of, unused
from diffcompress.sources.weights import fingerprint, weight_files


def answer(request: Request, progress: Progress) -> Shrunk | None:
    """What `shrink` returns of the run that is asked for; None while anything of it is left to do, a push included."""
    asked = request.asked
    if asked.push_to_hub is not None or (asked.output is None and asked.ratio is None):
        return None
    folder = request.folder(asked.ratio)
    try:
        whole = folder.is_finished and is_sound(folder) and request.more_time(folder) is None
        if not whole or not _is_same(folder, request) or _lacks_formats(folder, request):
            return None
    except DamagedError:  # the step that it is of makes it again, or tells
        return None
    report = reading.collect(folder) if folder.is_reported else _redrawn(folder)
    if asked.license is None or (report.provenance and asked.license == report.provenance.license.id):
        return _summary(report)
    licence = licence_of(request.reference, asked.license)
    if licence.id != asked.license:
        progress.warn(unused(licence, asked.license))
        return _summary(report)
    from diffcompress.export.provenance import relicense  # seconds of imports

    relicense(folder, asked.license)
    return _summary(_redrawn(folder))


def result(folder: RunFolder) -> Shrunk:
    """What `shrink --json` prints of a run."""
    return _summary(reading.collect(folder))


def _redrawn(folder: RunFolder) -> Report:
    from diffcompress.report.page import write_report  # seconds of imports

    return write_report(folder)


def _summary(report: Report) -> Shrunk:
    return Shrunk(**{name: getattr(report, name) for name in Shrunk.model_fields})


def _is_same(folder: RunFolder, request: Request) -> bool:
    reference = request.reference
    reference.fetch(reference.denoiser_part)
    asked = request.identity(fingerprint(reference, weight_files(reference.denoiser)))
    before = folder.identity.get("data")
    data = request.asked.data
    if data is not None and is_id(str(data)) and str(before).startswith(f"{data}@"):
        asked["data"] = before  # the commit that it stood for when the run began
    return folder.is_run(asked)


def _lacks_formats(folder: RunFolder, request: Request) -> bool:
    section = request.recipe.export
    if read_record(folder.provenance, Provenance).half_parts != section.half_parts:
        return True
    if not any(section.formats.values()):
        return False
    from diffcompress.export import formats  # seconds of imports

    return formats.written(folder, section) is None
