"""A finished run that is asked for again: answered from its folder, without loading teacher, bank or student."""

from __future__ import annotations

from typing import Any

from diffcompress.errors import DamagedError
from diffcompress.images.hub_images import is_id
from diffcompress.jobs.request import Request
from diffcompress.records.fingerprints import is_sound
from diffcompress.records.run_folder import RunFolder
from diffcompress.report import reading
from diffcompress.runtime import Progress
from diffcompress.sources.licence import licence_of, unused
from diffcompress.sources.weights import fingerprint, weight_files

FIELDS = (*reading.SUMMARY, "warnings")


def answer(request: Request, progress: Progress) -> dict[str, Any] | None:
    """What `shrink` returns of the run that is asked for; None while anything of it is left to do, a push included."""
    ratio = request.target["ratio"]
    if request.push_to_hub is not None or (request.output is None and ratio is None):
        return None
    folder = request.folder(ratio)
    try:
        whole = folder.is_finished and is_sound(folder) and request.more_time(folder) is None
        if not whole or not _is_same(folder, request) or _lacks_formats(folder, request):
            return None
    except DamagedError:  # the step that it is of makes it again, or tells
        return None
    told = reading.collect(folder) if folder.is_reported else _redrawn(folder)
    known = told["provenance"]["license"]
    if request.license in (None, known["id"]):
        return _fields(told)
    licence = licence_of(request.reference, request.license)
    if licence.id != request.license:
        progress.warn(unused(licence, request.license))
        return _fields(told)
    from diffcompress.export.provenance import relicense  # seconds of imports

    relicense(folder.pipeline, request.license)
    return _fields(_redrawn(folder))


def result(folder: RunFolder) -> dict[str, Any]:
    """What `shrink --json` prints of a run."""
    return _fields(reading.collect(folder))


def _redrawn(folder: RunFolder) -> dict[str, Any]:
    from diffcompress.report.page import write_report  # seconds of imports

    return write_report(folder)


def _fields(told: dict[str, Any]) -> dict[str, Any]:
    return {name: told[name] for name in FIELDS}


def _is_same(folder: RunFolder, request: Request) -> bool:
    reference = request.reference
    reference.fetch(reference.denoiser_part)
    asked = request.identity(fingerprint(reference, weight_files(reference.denoiser)))
    before = folder.identity.get("data")
    if request.data is not None and is_id(request.data) and str(before).startswith(f"{request.data}@"):
        asked["data"] = before  # the commit that it stood for when the run began
    return folder.is_run(asked)


def _lacks_formats(folder: RunFolder, request: Request) -> bool:
    section = request.recipe.export
    if not any(section.model_dump().values()):
        return False
    from diffcompress.export import formats  # seconds of imports

    return formats.written(folder, section) is None
