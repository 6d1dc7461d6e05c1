"""A diffusers pipeline folder around a single checkpoint: made once, in huggingface_hub's cache for such things.

The checkpoint's own autoencoder and text encoders go through diffusers' converters; what it does not hold is linked
from the pipeline folder that it lies in, or downloaded. Its denoiser stays where it is.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import torch
from filelock import FileLock

from diffcompress.errors import AccessError, UsageError
from diffcompress.records import shapes
from diffcompress.records.fingerprints import of_json, of_model_file
from diffcompress.records.run_files import kept, read_json, write_atomically, write_json
from diffcompress.runtime import Progress
from diffcompress.sources import hub
from diffcompress.sources.linking import check_space, is_own, link_part
from diffcompress.sources.model_index import left_out_of, parts_of
from diffcompress.sources.reference import Reference, Surroundings
from diffcompress.sources.state import StoredState
from diffcompress.sources.weights import require_parts

# Beside model_index.json: what was put together. Where it stands, the folder is whole.
RECORD = "assembled.json"
# Another one makes folders of earlier versions be made anew.
_FORMAT = 1
# Factors beside weights of 8 bits, which diffusers' converters would leave out.
_SCALES = (".scale_weight", ".weight_scale", ".scaled_fp8")


def assembled(reference: Reference, progress: Progress | None = None) -> Reference:
    """`reference` with the pipeline folder of its single checkpoint, which is put together unless that was done before.

    Others are returned as they are. Raises AccessError when something that the checkpoint does not hold cannot be had,
    UsageError when its parts do not convert, RunStopped when the disk is too small.
    """
    around = reference.surroundings
    if around is None:
        return reference
    digest, progress = of_model_file(reference.denoiser), progress or Progress()
    place = _cache() / _key(reference, around, digest)
    read = functools.partial(read_json, kind=shapes.Assembled)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(place.with_suffix(".lock")):  # of several processes the first makes it
            if kept(place / RECORD, read, progress.warn) is None:
                write_atomically(place, functools.partial(_write, reference, around, digest, progress))
    except OSError as error:
        raise UsageError(
            f"the pipeline around {reference.denoiser.name} cannot be put together in {place.parent}: {error}",
            "set HF_HOME to a folder that can be written to",
        ) from error
    return replace(reference, pipeline=place, surroundings=None, origins=read(place / RECORD)["parts"])


def _write(reference: Reference, around: Surroundings, digest: str, progress: Progress, folder: Path) -> None:
    file = reference.denoiser
    source, origin = _source(reference, around, progress)
    folder.mkdir()
    for part in around.others:
        link_part(source / part, folder / part)
    scheduler = reference.scheduler
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    write_json(folder / "model_index.json", {**around.index, "scheduler": ["diffusers", scheduler["_class_name"]]})
    if around.held:
        progress.note(f"converting {' and '.join(around.held)} of {file.name}")
        for part in around.held:
            (folder / part).mkdir()
            shutil.copyfile(source / part / "config.json", folder / part / "config.json")
        _convert(file, around.held, folder)
    parts = dict.fromkeys(around.held, file.name) | dict.fromkeys(around.others, origin)
    write_json(folder / RECORD, {"file": file.name, "sha256": digest, "parts": parts})


def _source(reference: Reference, around: Surroundings, progress: Progress) -> tuple[Path, str]:
    """The folder with everything that the checkpoint does not hold, and what to call it: no path, it is published."""
    file = reference.denoiser.name
    if isinstance(around.place, Path):
        require_parts(replace(reference, pipeline=around.place, surroundings=None), around.others)
        if lacking := _without_config(around.place, around):
            raise UsageError(
                f"{around.place} has no config for the {lacking} of {file}", "add the config.json of each to it"
            )
        return around.place, around.place.resolve().name
    try:
        repository = hub.find(around.place)
        for note in repository.notes:
            progress.note(note)
        repository.fetch(around.others, progress)
    except AccessError as error:
        raise AccessError(
            f"{file} holds no {' and no '.join(around.others)}: {error.message}",
            f"{error.hint}; or put the checkpoint into a pipeline folder, beside its model_index.json",
        ) from error
    require_parts(replace(reference, pipeline=repository.folder, repository=repository), around.others)
    if lacking := _without_config(repository.folder, around):
        raise AccessError(
            f"{file} holds a {lacking} without a config, and '{repository.id}' has none here",
            "run once with a network and without --offline",
        )
    return repository.folder, f"{repository.id}@{repository.commit}"


def _without_config(source: Path, around: Surroundings) -> str:
    return " and ".join(part for part in around.held if not is_own(source / part / "config.json", source))


def _convert(file: Path, held: Mapping[str, tuple[str, ...]], folder: Path) -> None:
    """The checkpoint's parts `held` into `folder`, which has their configs and a model_index.json."""
    index = read_json(folder / "model_index.json")
    dtype = _prepare(file, held, folder)
    absent = dict.fromkeys(part for part in (*parts_of(index), *left_out_of(index)) if part not in held)
    try:
        pipeline = getattr(diffusers, index["_class_name"]).from_single_file(
            str(file), config=str(folder), local_files_only=True, torch_dtype=dtype, **absent
        )
    except Exception as error:
        raise UsageError(
            f"the {' and the '.join(held)} in {file} cannot be converted: {error}",
            "the file must be a whole checkpoint of that model; else name a pipeline folder",
        ) from error
    for part in held:
        model: Any = getattr(pipeline, part)
        if hasattr(model, "tie_weights"):
            model.tie_weights()
        lacking = [name for name, value in model.named_parameters() if value.is_meta]
        if lacking:
            raise UsageError(
                f"the {part} in {file} is not whole: it lacks {len(lacking)} tensor(s), first {lacking[0]}",
                "use a whole checkpoint, or name a pipeline folder",
            )
        model.save_pretrained(folder / part)  # type: ignore[operator]


def _prepare(file: Path, held: Mapping[str, tuple[str, ...]], folder: Path) -> torch.dtype:
    """The dtype that loses nothing of the parts `held`; raises RunStopped where there is no room for them, UsageError
    where they are quantised beyond a dtype."""
    stored = StoredState([file])
    names = [name for tensors in held.values() for name in tensors]
    if scale := next((name for name in names if name.endswith(_SCALES)), None):
        raise UsageError(
            f"the text encoders in {file} are quantised ({scale})", "name a checkpoint in half or full precision"
        )
    found = {stored.dtype_of(name) for name in names} - {None}
    # Types of 8 bits, in which T5 comes at times, fit into the smallest of the others.
    widest = ("float32" if len(found) > 1 else found.pop()) if found else "float16"
    dtype: torch.dtype = getattr(torch, str(widest))
    check_space(folder, sum(torch.Size(stored.shape(name)).numel() for name in names) * dtype.itemsize)
    return dtype


def _cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_ASSETS_CACHE) / "diffcompress" / "checkpoints"


def _key(reference: Reference, around: Surroundings, digest: str) -> str:
    """What the folder follows from. A repository counts by its name: what was downloaded once does for good."""
    place: object = around.place
    if isinstance(around.place, Path):
        files = sorted(f for part in parts_of(around.index) for f in (around.place / part).glob("*") if f.is_file())
        place = [[f.parent.name, f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in files]
    return of_json([_FORMAT, digest, dict(around.index), reference.scheduler, place])[:32]
