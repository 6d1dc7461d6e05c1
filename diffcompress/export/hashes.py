"""Whether an exported pipeline is still what it was: SHA-256 of its files, as provenance and proof recorded them."""

from __future__ import annotations

from pathlib import Path

from diffcompress.errors import DamagedError
from diffcompress.run_folder import RunFolder, read_json
from diffcompress.teacher.state import sha256

PROVENANCE = "diffcompress.json"
# Written again with every report, or when the licence is stated later.
_CHANGING = (PROVENANCE, "README.md")


def weight_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every weight file of a pipeline folder, by its path inside the folder."""
    return {file.relative_to(folder).as_posix(): sha256(file) for file in sorted(folder.rglob("*.safetensors"))}


def other_hashes(folder: Path) -> dict[str, str]:
    """The same of its configs, tokenizers and licences: of everything that stays as it was written."""
    files = (file for file in sorted(folder.rglob("*")) if file.is_file() and file.suffix != ".safetensors")
    named = {file.relative_to(folder).as_posix(): file for file in files}
    return {name: sha256(file) for name, file in named.items() if name not in _CHANGING}


def is_sound(run: RunFolder) -> bool:
    """Whether `run.pipeline` holds the files that were proved, and the weights of its provenance.

    Reads every file of it. Raises DamagedError for a proof that cannot be read.
    """
    proof = read_json(run.proof, "files")
    try:
        stated = read_json(run.pipeline / PROVENANCE, "files")["files"]
        weights = weight_hashes(run.pipeline)
        others = other_hashes(run.pipeline) if "others" in proof else None
    except (DamagedError, OSError):
        return False
    return weights == proof["files"] == stated and others == proof.get("others")
