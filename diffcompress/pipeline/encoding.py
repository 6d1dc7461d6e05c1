"""Prompts through the teacher's own text encoders, once: to shards on disk, where they stay, and the encoders leave."""

from __future__ import annotations

import contextlib
import functools
import gc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from diffcompress.errors import DiffCompressError, UsageError
from diffcompress.pipeline import cut_prompts
from diffcompress.pipeline.conditions import Conditions
from diffcompress.pipeline.load import LoadedPipeline
from diffcompress.pipeline.stored_rows import stored_table
from diffcompress.pipeline.trace import trace
from diffcompress.pipeline.whole import load_whole
from diffcompress.records import fingerprints, layout
from diffcompress.records.run_files import kept, read_header, read_tensors, write_tensors
from diffcompress.records.scratch import kept_for, scratch
from diffcompress.runtime import Progress, Runtime, free_memory, holds_bfloat16
from diffcompress.sources.linking import link_pipeline, part_files
from diffcompress.sources.weights import require_parts

# Prompts encoded in one call, and kept in one file.
SHARD_SIZE = 16
NULL = "null"
# Of the free memory of a machine, for prompts that were read.
MEMORY_SHARE = 0.25


def with_prompts(
    pipeline: LoadedPipeline,
    prompts: Sequence[str],
    folder: Path,
    runtime: Runtime,
    progress: Progress,
    text_length: int | None = None,
    whole: Any = None,
    held_out: Sequence[str] = (),
) -> LoadedPipeline:
    """`pipeline` with `prompts` as its conditions, encoded into `folder` where that is not done yet, read from there.

    held_out: prompts for evaluation alone, beside them (`Conditions.apart`); text_length: tokens of a prompt, for
    pipelines that let one choose (max_sequence_length), None: their default; whole: the diffusers pipeline, where it
    was loaded before.
    Pipelines without text are returned as they are. Raises UsageError when the text parts of the pipeline are missing
    or cannot encode; RunStopped or RunInterrupted between shards.
    """
    if not pipeline.takes_text:
        return pipeline
    if pipeline.reference.pipeline is None:
        raise UsageError(
            f"'{pipeline.reference.id}' is a text-conditional denoiser without text encoders",
            "name the pipeline folder that it belongs to, or put the file into it",
        )
    every = [*prompts, *held_out]
    place = folder / _key(pipeline, every, text_length)
    shards = [every[start : start + SHARD_SIZE] for start in range(0, len(every), SHARD_SIZE)]
    if runtime.is_main and not _all_there(place, len(shards), progress):
        _encode(pipeline, shards, place, runtime, progress, text_length, whole)
    runtime.wait()
    runtime.stop.raise_if_set()
    files = [place / _name(number) for number in range(len(shards))]
    null = place / _name(NULL)
    # Without null conditioning the file says so: safetensors has no empty ones.
    has_null = "none" not in stored_table([null])
    table = stored_table([*files, null] if has_null else files, _room(runtime))
    told = cut_prompts.warning([read_header(file) for file in files], len(every))
    if told is not None:
        progress.warn(told)
    warnings = () if told is None else (told,)
    null_row = len(every) if has_null else None
    conditions = Conditions(table, len(prompts), null_row, tuple(every), warnings, held_out=len(held_out))
    return replace(pipeline, conditions=conditions)


def _encode(
    pipeline: LoadedPipeline,
    shards: list[list[str]],
    place: Path,
    runtime: Runtime,
    progress: Progress,
    text_length: int | None,
    whole: Any,
) -> None:
    family = pipeline.family
    if whole is None or whole.dtype != _dtype(pipeline):
        whole = _loaded(pipeline, progress)
    total = sum(len(shard) for shard in shards)
    null_file = place / _name(NULL)
    for number, prompts in enumerate(shards):
        file = place / _name(number)
        if not (file.is_file() and null_file.is_file()):
            progress.update("prompts", number * SHARD_SIZE, total)
            with cut_prompts.watched(whole) as cut:
                rows, null = trace(whole, family, prompts, pipeline.sample_shape, text_length)
            if not null_file.is_file():
                write_tensors(null_file, null or {"none": torch.zeros(1)}, _of(place, NULL))
            write_tensors(file, rows, _of(place, number) | cut_prompts.stored(cut))
            progress.update("prompts", min((number + 1) * SHARD_SIZE, total), total)
        runtime.stop.raise_if_set()
    del whole
    gc.collect()
    if pipeline.device.type == "cuda":
        torch.cuda.empty_cache()


def _loaded(pipeline: LoadedPipeline, progress: Progress) -> Any:
    """With the very files that the student will come with, whatever variant each part has."""
    reference = pipeline.reference
    assert reference.pipeline is not None
    others = [part for part in reference.parts if part != reference.denoiser_part]
    reference.fetch(*others)
    require_parts(reference, [part for part in others if part.startswith(("text_encoder", "tokenizer"))])
    try:
        with contextlib.ExitStack() as held:
            folder = held.enter_context(scratch("parts"))
            link_pipeline(reference.pipeline, others, folder, without=reference.without, borrow=True)
            return kept_for(load_whole(folder, pipeline, _dtype(pipeline), progress), held)
    except (MemoryError, torch.OutOfMemoryError, DiffCompressError):
        raise
    except Exception as error:  # of many kinds, by what is broken
        raise UsageError(
            f"the pipeline of '{reference.id}' cannot be loaded: {error}", "check that it is complete"
        ) from error


def _room(runtime: Runtime) -> int:
    """Bytes of memory that this process may fill with prompts."""
    return int(MEMORY_SHARE * free_memory(torch.device("cpu"))) // runtime.accelerator.num_processes


def _all_there(place: Path, count: int, progress: Progress) -> bool:
    """Whether all `count` shards and the null conditioning are there; what is damaged is told and removed."""
    names: list[int | str] = [*range(count), NULL]
    found = [
        kept(place / _name(name), functools.partial(read_tensors, of=_of(place, name)["of"]), progress.warn) is not None
        for name in names
    ]
    return all(found)


def _name(of: int | str) -> str:
    return layout.of_role(of) if isinstance(of, str) else layout.shard(of)


def _of(place: Path, name: int | str) -> dict[str, str]:
    """What the header of a file says that it holds."""
    return {"of": f"{place.name} {name}"}


def _dtype(pipeline: LoadedPipeline) -> torch.dtype:
    """What text encoders, which dwarf most denoisers, run in: half their size on an accelerator, as is usual there."""
    halved = pipeline.device.type != "cpu" and holds_bfloat16(pipeline.device)
    return torch.bfloat16 if halved else torch.float32


def _key(pipeline: LoadedPipeline, prompts: Sequence[str], text_length: int | None) -> str:
    """What encoded prompts follow from: the teacher's pipeline (its revision; or its files' sizes and times, as a
    fine-tuned encoder is as large as before), shape, the dtype they are encoded in, texts."""
    reference = pipeline.reference
    assert reference.pipeline is not None
    stamp: object = reference.revision
    if stamp is None:
        parts = [part for part in reference.parts if part.startswith(("text_encoder", "tokenizer"))]
        files = sorted(file for part in parts for file in part_files(reference.pipeline / part))
        known = [(str(f.relative_to(reference.pipeline)), f.stat()) for f in files]
        stamp = [[name, of.st_size, of.st_mtime_ns] for name, of in known]
    shape, dtype = list(pipeline.sample_shape), str(_dtype(pipeline))
    return fingerprints.of_json([pipeline.fingerprint, stamp, shape, dtype, text_length, list(prompts)])[:16]
