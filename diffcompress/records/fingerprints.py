"""SHA-256 of values, tensors and files; whether an exported pipeline is still what provenance and proof recorded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import Buffer

from diffcompress.errors import DamagedError
from diffcompress.records import shapes
from diffcompress.records.layout import CARD, PROVENANCE
from diffcompress.records.provenance import Provenance
from diffcompress.records.run_files import read_json, read_record
from diffcompress.records.run_folder import RunFolder

if TYPE_CHECKING:
    from torch import Tensor

# Written again with every report, or when the licence is stated later.
_CHANGING = (PROVENANCE, CARD)


# Of the files of a model, by path, size and time of change: each is asked for by run, loading and provenance in turn.
_FILES: dict[tuple[Path, int, int], str] = {}
_MODELS: dict[tuple[object, ...], str] = {}


def of_bytes(parts: Iterable[Buffer]) -> str:
    """SHA-256 of `parts`, end to end."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def of_text(text: str) -> str:
    """SHA-256 of `text` in UTF-8."""
    return of_bytes([text.encode()])


def of_json(value: Any) -> str:
    """SHA-256 of a value as JSON, whatever the order of its keys."""
    return of_text(_as_json(value))


def of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names and bytes, in their order."""
    import torch

    def parts() -> Iterator[Buffer]:
        for name, value in tensors.items():
            yield name.encode()
            yield value.detach().cpu().flatten().view(torch.uint8).numpy().data

    return of_bytes(parts())


def sha256(*files: Path) -> str:
    """SHA-256 of the contents of `files`, end to end."""
    return of_bytes(chunk for file in files for chunk in _chunks(file))


def of_model(told: Any, files: Sequence[Path]) -> str:
    """SHA-256 of `told` as JSON and the contents of `files`, end to end.

    A file is read once in a process while it stays as it is, also for `of_model_file`.
    """
    text = _as_json(told)
    key = (text, *map(_stamp, files))
    if key not in _MODELS:
        _MODELS[key] = of_bytes(_noted(text, files))
    return _MODELS[key]


def of_model_file(file: Path) -> str:
    """SHA-256 of one file of a model, computed once in a process while it stays as it is."""
    if (stamp := _stamp(file)) not in _FILES:
        _FILES[stamp] = sha256(file)
    return _FILES[stamp]


def _noted(told: str, files: Sequence[Path]) -> Iterator[bytes]:
    """The bytes of `of_model`, while each file's own hash is noted."""
    yield told.encode()
    for file in files:
        if (stamp := _stamp(file)) in _FILES:  # downloaded a moment ago, and checked
            yield from _chunks(file)
            continue
        own = hashlib.sha256()
        for chunk in _chunks(file):
            own.update(chunk)
            yield chunk
        _FILES[stamp] = own.hexdigest()


def _stamp(file: Path) -> tuple[Path, int, int]:
    known = file.stat()
    return file.resolve(), known.st_size, known.st_mtime_ns


def _chunks(file: Path) -> Iterator[bytes]:
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            yield chunk


def _as_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def weight_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every weight file of a pipeline folder, by its path inside the folder."""
    return {file.relative_to(folder).as_posix(): sha256(file) for file in sorted(folder.rglob("*.safetensors"))}


def other_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of configs, tokenizers and licences in a pipeline folder: of everything that stays as it was written."""
    files = (file for file in sorted(folder.rglob("*")) if file.is_file() and file.suffix != ".safetensors")
    named = {file.relative_to(folder).as_posix(): file for file in files}
    return {name: sha256(file) for name, file in named.items() if name not in _CHANGING}


def differs_from_provenance(folder: Path) -> bool:
    """Whether a pipeline that tells what it was made as, in diffcompress.json, holds other weights than that says."""
    if not (folder / PROVENANCE).is_file():
        return False
    try:
        return weight_hashes(folder) != read_record(folder / PROVENANCE, Provenance).files
    except (DamagedError, OSError):
        return True


def is_sound(run: RunFolder) -> bool:
    """Whether `run.pipeline` holds the files that were proved, and the weights of its provenance.

    Reads every file of it. Raises DamagedError for a proof that cannot be read.
    """
    proof = read_json(run.proof, "files", kind=shapes.Proof)
    try:
        stated = read_record(run.provenance, Provenance).files
        weights = weight_hashes(run.pipeline)
        others = other_hashes(run.pipeline) if "others" in proof else None
    except (DamagedError, OSError):
        return False
    return weights == proof["files"] == stated and others == proof.get("others")
