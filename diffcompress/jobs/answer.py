"""A finished run that is asked for again: answered from its folder, without loading teacher, bank or student."""

from __future__ import annotations

from typing import Any

from diffcompress.jobs.request import Request
from diffcompress.records.fingerprints import is_sound
from diffcompress.records.run_folder import RunFolder
from diffcompress.report import reading
from diffcompress.sources.weights import fingerprint, weight_files

FIELDS = (*reading.SUMMARY, "warnings")


def answer(request: Request) -> dict[str, Any] | None:
    """What `shrink` returns of the run that is asked for; None while anything of it is left to do, a push included."""
    ratio = request.target["ratio"]
    if request.push_to_hub is not None or (request.output is None and ratio is None):
        return None
    folder = request.folder(ratio)
    if (
        not folder.is_finished
        or not is_sound(folder)
        or request.more_time(folder) is not None
        or not _is_same(folder, request)
    ):
        return None
    told = reading.collect(folder)
    licence = told["provenance"].get("license", {}).get("id")
    return None if request.license not in (None, licence) or _lacks_formats(folder, request) else _fields(told)


def result(folder: RunFolder) -> dict[str, Any]:
    """What `shrink --json` prints of a run."""
    return _fields(reading.collect(folder))


def _fields(told: dict[str, Any]) -> dict[str, Any]:
    return {name: told[name] for name in FIELDS}


def _is_same(folder: RunFolder, request: Request) -> bool:
    reference = request.reference
    reference.fetch(reference.denoiser_part)
    return folder.is_run(request.identity(fingerprint(reference, weight_files(reference.denoiser))))


def _lacks_formats(folder: RunFolder, request: Request) -> bool:
    section = request.recipe.export
    if not any(section.model_dump().values()):
        return False
    from diffcompress.export import formats  # seconds of imports

    return formats.written(folder, section) is None
