"""SHA-256 of files, and whether an exported pipeline is still what provenance and proof recorded."""

from __future__ import annotations

import hashlib
from pathlib import Path

from diffcompress.errors import DamagedError
from diffcompress.records import shapes
from diffcompress.records.run_folder import RunFolder, read_json

PROVENANCE = "diffcompress.json"
# Written again with every report, or when the licence is stated later.
_CHANGING = (PROVENANCE, "README.md")


def sha256(*files: Path) -> str:
    """Of the contents of `files`, end to end."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def weight_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every weight file of a pipeline folder, by its path inside the folder."""
    return {file.relative_to(folder).as_posix(): sha256(file) for file in sorted(folder.rglob("*.safetensors"))}


def other_hashes(folder: Path) -> dict[str, str]:
    """The same of its configs, tokenizers and licences: of everything that stays as it was written."""
    files = (file for file in sorted(folder.rglob("*")) if file.is_file() and file.suffix != ".safetensors")
    named = {file.relative_to(folder).as_posix(): file for file in files}
    return {name: sha256(file) for name, file in named.items() if name not in _CHANGING}


def differs_from_provenance(folder: Path) -> bool:
    """Whether a pipeline that tells what it was made as, in diffcompress.json, holds other weights than that says."""
    if not (folder / PROVENANCE).is_file():
        return False
    try:
        return weight_hashes(folder) != read_json(folder / PROVENANCE, kind=shapes.Provenance)["files"]
    except (DamagedError, OSError):
        return True


def is_sound(run: RunFolder) -> bool:
    """Whether `run.pipeline` holds the files that were proved, and the weights of its provenance.

    Reads every file of it. Raises DamagedError for a proof that cannot be read.
    """
    proof = read_json(run.proof, "files", kind=shapes.Proof)
    try:
        stated = read_json(run.pipeline / PROVENANCE, kind=shapes.Provenance)["files"]
        weights = weight_hashes(run.pipeline)
        others = other_hashes(run.pipeline) if "others" in proof else None
    except (DamagedError, OSError):
        return False
    return weights == proof["files"] == stated and others == proof.get("others")
