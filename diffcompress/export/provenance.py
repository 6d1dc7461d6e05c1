"""diffcompress.json in the exported pipeline: all it was made from (docs/schemas/provenance.schema.json)."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from diffcompress.pipeline.load import LoadedPipeline
from diffcompress.records.fingerprints import of_model_file, weight_hashes
from diffcompress.records.provenance import LicenceTold, Provenance, Seeds, StudentRatio, TeacherFiles
from diffcompress.records.report import Report
from diffcompress.records.run_files import read_json, read_record, write_json
from diffcompress.records.run_folder import RunFolder
from diffcompress.runtime import dtype_name
from diffcompress.sources.hub_names import public_name
from diffcompress.sources.licence import NOBODY, STATED, Licence, is_demo, stated_by_user
from diffcompress.sources.model_index import left_out_of
from diffcompress.sources.reference import Reference
from diffcompress.sources.weights import weight_files

_PACKAGES = ("diffcompress", "diffusers", "torch", "accelerate", "safetensors", "huggingface-hub", "numpy")


def record(
    folder: Path,
    teacher: LoadedPipeline,
    licence: Licence,
    dtype: torch.dtype,
    given: Mapping[str, Any],
    report: Report,
) -> Provenance:
    """What diffcompress.json in `folder` says: no path of this machine is in it, for it is published with the weights.

    given: recipe, seed, bank hash and method as the run knows them.
    """
    asked = report.asked
    # A denoiser alone, of a class that makes no pipeline by itself, has none.
    file = folder / "model_index.json"
    index = read_json(file, kind=dict) if file.is_file() else {}
    family, left_out = teacher.family.class_name, left_out_of(index)
    return Provenance(
        format=1,
        teacher=_teacher(teacher, report.teacher.params),
        student=StudentRatio(**{name: getattr(report.student, name) for name in StudentRatio.model_fields}),
        target=asked.get("target"),
        recipe_name=public_name(asked.get("recipe_name")),
        data=public_name(asked.get("data")),
        **given,
        seeds=Seeds(run=given.get("seed"), evaluation=report.protocol.seed if report.protocol else None),
        license=_told(licence),
        denoiser=family,
        num_classes=teacher.family.num_classes(teacher.config),
        pipeline=index.get("_class_name"),
        **({"left_out": left_out} if left_out else {}),
        pipeline_tag=pipeline_tag(index, family),
        dtype=dtype_name(dtype),
        versions={"python": platform.python_version()} | {name: version(name) for name in _PACKAGES},
        files=weight_hashes(folder),
    )


def relicense(run: RunFolder, stated: str) -> None:
    """Write the licence that the user states into diffcompress.json, unless the teacher's card said one."""
    found = read_record(run.provenance, Provenance)
    if found.license.source in (NOBODY, STATED):
        changed = found.model_copy(update={"license": _told(stated_by_user(stated))})
        write_json(run.provenance, changed.to_json())


def _told(licence: Licence) -> LicenceTold:
    return LicenceTold(**licence.as_json())


def pipeline_tag(index: Mapping[str, Any], denoiser: str) -> str:
    """The Hub's name for what a pipeline does, from model_index.json and the denoiser's class.

    The Hub has no name for class-conditional models: they go with the unconditional ones.
    """
    if not any(part.startswith("tokenizer") for part in index):
        return "unconditional-image-generation"
    return "text-to-video" if "3DModel" in denoiser else "text-to-image"


def _teacher(teacher: LoadedPipeline, params: int | None) -> TeacherFiles:
    reference = teacher.reference
    repository = getattr(reference, "repository", None)
    files = weight_files(reference.denoiser)
    single = reference.denoiser.is_file()
    root = reference.denoiser.parent if single else reference.pipeline or reference.denoiser
    parts = {"parts": dict(reference.origins)} if reference.origins else {}
    return TeacherFiles(
        id=repository.id if repository else reference.id if is_demo(reference) else None,
        name=reference.name,
        revision=repository.commit if repository else None,
        params=params,
        fingerprint=teacher.fingerprint,
        files={file.relative_to(root).as_posix(): _known_hash(reference, file, root) for file in files},
        **parts,
    )


def _known_hash(reference: Reference, file: Path, root: Path) -> str:
    """SHA-256 of a teacher's file: as the Hub states it, which was checked at the download; else computed."""
    repository = getattr(reference, "repository", None)
    stated = (repository.files or {}).get(file.relative_to(root).as_posix()) if repository else None
    return (stated.sha256 if stated else None) or of_model_file(file)
