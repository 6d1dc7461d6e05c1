"""Files of ours: written all or nothing, read in one place that says what is damaged and how it is made again."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffcompress.errors import DamagedError, RunStopped

_UMASK = os.umask(0)
os.umask(_UMASK)
_LONGEST = 200  # of what a library says, in characters
_STEPS = (  # by how the names of their files begin
    ("bank", "is drawn from the teacher"),
    ("conditions", "is encoded"),
    ("targets", "is asked of the teacher"),
    ("student-init", "is inherited"),
    ("stage-", "is trained"),
    ("cache", "is drawn"),
    ("metrics", "is evaluated"),
    ("export", "is exported and proved"),
)


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a neighbour of `path` (a file or a folder), then move it into place: all or nothing.

    Raises RunStopped when the disk is full, IsADirectoryError for a file where a folder lies; what was there before is
    still there.
    """
    part = path.with_name(path.name + ".part")
    discard(part)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        write(part)
        if path.is_dir() and not part.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        _let_others_read(part)
        if path.is_dir():
            old = path.with_name(path.name + ".old")
            discard(old)
            os.replace(path, old)
            os.replace(part, path)
            discard(old)
        else:
            os.replace(part, path)
    except OSError as error:
        discard(part)
        if error.errno == errno.ENOSPC:
            raise RunStopped(
                f"no space left on the disk that holds {path.parent}", "free some space and run the same command again"
            ) from error
        raise
    except BaseException:
        discard(part)
        raise


def _let_others_read(made: Path) -> None:
    """safetensors writes for the owner alone: its files get the mode of any other, linked ones stay as they are."""
    for file in made.rglob("*.safetensors") if made.is_dir() else [made]:
        if file.lstat().st_nlink == 1 and not file.is_symlink():
            with contextlib.suppress(PermissionError):  # a file system without modes
                file.chmod(0o666 & ~_UMASK)


def write_text(path: Path, text: str) -> None:
    """Half characters, which a config may hold, as JSON and YAML escape them."""
    write_atomically(path, lambda part: part.write_text(text, encoding="utf-8", errors="backslashreplace"))


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path, *keys: str, kind: Any = (dict, list)) -> Any:
    """What `write_json` left in `path`: a dict with `keys`, where any are named. DamagedError for what is no `kind`."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(path, str(error)) from error
    if not isinstance(value, dict if keys else kind):
        raise damaged(path, f"it holds a {type(value).__name__}")
    if lacking := [key for key in keys if key not in value]:
        raise damaged(path, f"it has no '{lacking[0]}'")
    return value


def read_tensors(path: Path, *, finite: bool = True) -> dict[str, Any]:
    """The tensors of a safetensors file of ours; raises DamagedError for a broken file, and for NaN or infinite values
    where all must be `finite`."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from torch import isfinite

    try:
        tensors = load_file(path)
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError) as error:
        raise damaged(path, str(error)) from error
    for name, value in tensors.items() if finite else ():
        if value.is_floating_point() and not isfinite(value).all():
            raise damaged(path, f"{name} holds NaN or infinite values")
    return tensors


def damaged(path: Path, why: str) -> DamagedError:
    """The error of a file of ours: what is to be deleted so that it is made again, and by which step."""
    whole = path.parent if path.parent.name == "final" or path.parent.name.startswith("step-") else path
    step = next((step for part in reversed(path.parts) for name, step in _STEPS if part.startswith(name)), "is made")
    hint = f"delete {whole} and run the same command again: what it held {step} again"
    return DamagedError(f"{path} is damaged: {' '.join(why.split())[:_LONGEST]}", hint)


def discard(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
