"""The student as a plain diffusers pipeline folder: the teacher's own pipeline with a smaller denoiser."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import ModelMixin
from torch import nn

from diffcompress.errors import DiffCompressError
from diffcompress.export.provenance import record
from diffcompress.images.prompts import OWN_FILE, own_file
from diffcompress.pipeline.load import LoadedPipeline
from diffcompress.records.layout import PROVENANCE
from diffcompress.records.run_files import read_json, write_atomically, write_json
from diffcompress.records.run_folder import RunFolder
from diffcompress.report import card, reading
from diffcompress.runtime import dtype_name
from diffcompress.sources.halves import halve
from diffcompress.sources.licence import licence_files, licence_of
from diffcompress.sources.linking import check_space, link_pipeline


def export_pipeline(
    student: ModelMixin,
    teacher: LoadedPipeline,
    run: RunFolder,
    *,
    dtype: torch.dtype,
    half_parts: bool = False,
    provenance: Mapping[str, Any] | None = None,
) -> Path:
    """Write `run.pipeline`, all or nothing, and return it.

    `student` is the float32 denoiser to ship (EMA weights loaded), stored in `dtype`; half_parts: `half` of
    `write_rest`. `provenance` (recipe, seeds, bank hash, `license` when the user stated one) goes into
    diffcompress.json beside teacher, versions and file hashes.
    Raises DiffCompressError when a weight is not finite in `dtype`.
    """
    shipped = as_shipped(student, dtype)
    given = dict(provenance or {})
    licence = licence_of(teacher.reference, given.pop("license", None))

    def write(folder: Path) -> None:
        folder.mkdir(parents=True)
        subfolder = write_rest(folder, teacher, half=half_parts)
        shipped.save_pretrained(folder / subfolder, safe_serialization=True)
        for file in licence_files(teacher.reference):
            shutil.copyfile(file, folder / file.name)
        report = reading.collect(run)
        told = record(folder, teacher, licence, dtype, given, report)
        write_json(folder / PROVENANCE, told.to_json())
        card.write(folder, told, report)

    write_atomically(run.pipeline, write)
    return run.pipeline


def as_shipped(student: ModelMixin, dtype: torch.dtype) -> ModelMixin:
    """A copy of `student` on the CPU in `dtype`; raises DiffCompressError for NaN or overflow."""
    # nn.Module's own `to`: diffusers' warns about modules to keep in float32 even where there are none.
    shipped = nn.Module.to(copy.deepcopy(student), "cpu", dtype).eval().requires_grad_(False)
    for name, value in shipped.state_dict().items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise DiffCompressError(
                f"the student cannot be exported: {name} holds NaN or infinite values in {dtype_name(dtype)}",
                "export with --dtype float32, or train again with a lower learning rate",
            )
    return shipped


def rounded(student: ModelMixin, dtype: torch.dtype, device: torch.device | str = "cpu") -> ModelMixin:
    """A copy with the values that ship in `dtype`, which computes in float32 on `device`; raises as `as_shipped`.

    Buffers that are no part of the weights, such as tables of positions, keep their precision: nothing rounds them
    where the weights are loaded to compute in float32.
    """
    made = nn.Module.to(as_shipped(student, dtype), device, torch.float32)
    shipped, buffers = made.state_dict(), dict(made.named_buffers())
    for name, value in student.named_buffers():
        if name not in shipped and value.is_floating_point():
            buffers[name].copy_(value)
    return made


def write_rest(folder: Path, teacher: LoadedPipeline, *, half: bool = False, borrow: bool = False) -> str:
    """Everything of the pipeline but the denoiser, weights under plain names; returns the denoiser's subfolder.

    Of a denoiser alone its scheduler, and a pipeline index where one can be made of the two. half: other parts in half
    precision where they are stored in more (`halves`). borrow: see `link_part`. Raises RunStopped when the disk is too
    small.
    """
    reference, family = teacher.reference, teacher.family
    if reference.pipeline is None:
        scheduler = reference.scheduler["_class_name"]
        if (pipeline := family.bare_pipeline(scheduler)) is not None:
            index = {
                "_class_name": pipeline,
                "_diffusers_version": diffusers.__version__,
                "scheduler": ["diffusers", scheduler],
                family.subfolder: ["diffusers", family.class_name],
            }
            write_json(folder / "model_index.json", index)
        write_json(folder / "scheduler" / "scheduler_config.json", reference.scheduler)
        return family.subfolder
    subfolder = reference.denoiser_part
    others = [part for part in reference.parts if part != subfolder]
    if not borrow:
        check_space(folder, reference.other_bytes() or 0)
    if (prompts := own_file(reference)) is not None:
        shutil.copyfile(prompts, folder / OWN_FILE)
    link_pipeline(reference.pipeline, others, folder, without=reference.without, borrow=borrow)
    for part in others if half else ():
        halve(folder / part)
    _tell_prediction(folder / "scheduler" / "scheduler_config.json", reference.scheduler)
    return subfolder


def _tell_prediction(file: Path, scheduler: Mapping[str, Any]) -> None:
    """Write what the denoiser predicts into a scheduler's config, where that says something else."""
    written = read_json(file)
    if written.get("prediction_type") != scheduler.get("prediction_type"):
        write_json(file, {**written, "prediction_type": scheduler["prediction_type"]})
