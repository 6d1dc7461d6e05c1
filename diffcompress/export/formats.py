"""Copies of the exported denoiser in other formats, in `exports/` of the run folder, as the recipe asks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from safetensors.torch import save_file
from torch import nn

from diffcompress.errors import DamagedError
from diffcompress.export.adapter import check_adapter, export_adapter
from diffcompress.export.gguf import check_gguf, export_gguf
from diffcompress.export.onnx import check_inputs, check_installed, export_onnx
from diffcompress.export.original import check_shape, export_original
from diffcompress.export.weights import as_shipped
from diffcompress.families.base import Family
from diffcompress.families.shapes import shapes as shapes_of
from diffcompress.pipeline.load import LoadedPipeline
from diffcompress.recipe import ExportSection
from diffcompress.records import shapes
from diffcompress.records.fingerprints import sha256
from diffcompress.records.layout import ADAPTER, EXPORT_RECORD, GGUF, ONNX, ORIGINAL, SINGLE_FILE
from diffcompress.records.provenance import Provenance
from diffcompress.records.run_files import read_json, read_record, write_atomically, write_checked
from diffcompress.records.run_folder import RunFolder
from diffcompress.runtime import dtype_name


def check(
    section: ExportSection, family: Family, config: Mapping[str, Any], layers: Mapping[str, str] | None = None
) -> None:
    """Raise UsageError for a format that this installation cannot write, or that this student of `family` has not.

    layers: those that it took over whole, the teacher's by the student's.
    """
    if section.onnx:
        check_installed()
        check_inputs(family, config)
    if section.original:
        check_shape(family.class_name, config)
    if section.gguf:
        check_gguf(family.class_name, config)
    if section.adapter is not None:
        check_adapter(Path(section.adapter), layers or {}, shapes_of(family.class_name, config).tensors)


def written(run: RunFolder, section: ExportSection) -> dict[str, Any] | None:
    """exports.json's content, where all that `section` asks for is there and of the weights in `run.pipeline`."""
    try:
        found = dict(read_json(run.export_record, kind=shapes.Exports))
        hashes = {name: sha256(run.exports / name) for name in found["files"]}
    except (OSError, DamagedError):
        return None
    shipped = read_record(run.provenance, Provenance).files
    # Of earlier versions it knows fewer formats.
    if section.adapter is not None and found.get("adapter", {}).get("of") != _digest(section.adapter):
        return None
    asked = (ExportSection().formats | found["asked"], found["pipeline_files"], found["files"])
    return found if asked == (section.formats, shipped, hashes) else None


def write_formats(
    student: ModelMixin,
    teacher: LoadedPipeline,
    run: RunFolder,
    section: ExportSection,
    *,
    dtype: torch.dtype,
    layers: Mapping[str, str] | None = None,
) -> dict[str, Any] | None:
    """Write what `section` asks for, all or nothing, and return exports.json's content; None when it asks for nothing.

    The weights are those of `run.pipeline`, rounded to `dtype`; what is there and still of these weights is kept.
    layers: see `check`.
    """
    asked = section.formats
    if not any(asked.values()):
        return None
    if (found := written(run, section)) is not None:
        return found
    shipped = read_record(run.provenance, Provenance).files
    rounded = as_shipped(student, dtype)
    config = dict(student.config)
    record: dict[str, Any] = {"asked": asked, "pipeline_files": shipped, "files": {}}

    def write(folder: Path) -> None:
        folder.mkdir()
        noise, name = teacher.noise.prediction_type, teacher.family.class_name
        if section.single_file:
            record["single_file"] = {"file": SINGLE_FILE, "dtype": dtype_name(dtype)}
            save_file(rounded.state_dict(), folder / SINGLE_FILE, _header(run, teacher, config))
        if section.original:
            header = _header(run, teacher, config)
            export_original(rounded, name, teacher.reference.scheduler, header, folder / ORIGINAL)
            record["original"] = {"file": ORIGINAL, "dtype": dtype_name(dtype), "prediction_type": noise}
        if section.gguf:
            told = export_gguf(rounded.state_dict(), {**config, "_class_name": name}, folder / GGUF)
            record["gguf"] = {"file": GGUF, "prediction_type": noise} | told
        if section.adapter is not None:
            tensors = shapes_of(name, config).tensors
            told = export_adapter(Path(section.adapter), layers or {}, tensors, folder / ADAPTER)
            record["adapter"] = told | {"of": _digest(section.adapter)}
        if section.onnx:
            plain = nn.Module.to(rounded, torch.float32)
            told = export_onnx(teacher.family, plain, config, folder / ONNX)
            record["onnx"] = {"file": ONNX, "dtype": "float32"} | told
        record["files"] = {file.name: sha256(file) for file in sorted(folder.iterdir())}
        write_checked(folder / EXPORT_RECORD, record)

    write_atomically(run.exports, write)
    return record


def _digest(file: str) -> str | None:
    try:
        return sha256(Path(file))
    except OSError:
        return None


def _header(run: RunFolder, teacher: LoadedPipeline, config: dict[str, Any]) -> dict[str, str]:
    """What makes one file enough: the class to build and its config, and what it was made from."""
    record = read_record(run.provenance, Provenance)
    plain = {key: value for key, value in config.items() if not key.startswith("_")}
    return {
        "format": "pt",
        "class_name": teacher.family.class_name,
        "config": json.dumps({"_class_name": teacher.family.class_name} | plain),
        "scheduler": json.dumps(teacher.reference.scheduler, default=str),
        "teacher": json.dumps(record.teacher.to_json()),
        "license": record.license.id,
    }
