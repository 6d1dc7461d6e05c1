"""Files of ours: written all or nothing, read in one place that says what is damaged and how it is made again."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import shutil
import stat
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from diffcompress.errors import FULL, DamagedError, RunStopped, UsageError
from diffcompress.records import layout
from diffcompress.records.record import Record

T = TypeVar("T")

SomeRecord = TypeVar("SomeRecord", bound=Record)
_UMASK = os.umask(0)
os.umask(_UMASK)
_LONGEST = 200  # of what a library says, in characters
_STAMP = "# checksum "
_HEADER, _CHECKSUM, _OF = "diffcompress", "checksum", "of"  # in safetensors files; a checksum is in JSON, too
_CHANGED = "its checksum is not that of what it holds"


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a neighbour of `path` (a file or a folder), then move it into place: all or nothing.

    Raises RunStopped when the disk is full, DamagedError where something of another kind lies; what was there before is
    still there.
    """
    part = path.with_name(path.name + ".part")
    discard(part)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        write(part)
        _make_way(path, for_folder=part.is_dir())
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
        if error.errno in FULL:
            told = "no space left on the disk that holds" if error.errno == errno.ENOSPC else f"{error.strerror}, in"
            raise RunStopped(f"{told} {path.parent}", "free some space and run the same command again") from error
        raise
    except BaseException:
        discard(part)
        raise


def _make_way(path: Path, *, for_folder: bool) -> None:
    """Nothing but an empty folder is removed: what else lies at a name of ours, and is of another kind, may be the
    user's."""
    if not path.is_dir():
        if for_folder and path.exists():
            raise damaged(path, "it is a file, where a folder belongs")
    elif not for_folder:
        try:
            path.rmdir()
        except OSError as error:
            raise damaged(path, "it is a folder that holds something, where a file belongs") from error


def _let_others_read(made: Path) -> None:
    """safetensors writes for the owner alone: its files get the mode of any other, linked ones stay as they are."""
    for file in made.rglob("*.safetensors") if made.is_dir() else [made]:
        if file.lstat().st_nlink == 1 and not file.is_symlink():
            with contextlib.suppress(PermissionError):  # a file system without modes
                file.chmod(0o666 & ~_UMASK)


def write_text(path: Path, text: str) -> None:
    """Half characters, which a config may hold, as JSON and YAML escape them."""
    plain = {"encoding": "utf-8", "errors": "backslashreplace", "newline": "\n"}
    write_atomically(path, lambda part: part.write_text(text, **plain))


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_checked(path: Path, value: Mapping[str, Any]) -> None:
    """`value` as JSON, with a checksum of all that it says as its last entry: `read_json` looks for it."""
    write_json(path, {**value, _CHECKSUM: _json_checksum(value)})


def _json_checksum(value: Mapping[str, Any]) -> str:
    return f"crc32 {zlib.crc32(json.dumps(value, sort_keys=True).encode()):08x}"


def read_text(path: Path, errors: str = "strict") -> str:
    """The text of a file of ours; raises DamagedError for what is none. errors: as of `open`, for broken UTF-8."""
    _check_regular(path)
    try:
        return path.read_text(encoding="utf-8", errors=errors)
    except ValueError as error:
        raise damaged(path, str(error)) from error


def _check_regular(path: Path) -> None:
    """Raises DamagedError for what is no regular file, such as a named pipe, which would be waited for, and OSError for
    one that is not to be had now: what it holds may be whole."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise damaged(path, error.strerror or "") from error
        raise
    if not stat.S_ISREG(mode):
        raise damaged(path, "it is a folder" if stat.S_ISDIR(mode) else "it is no regular file")
    path.open("rb").close()


def read_json(path: Path, *keys: str, kind: Any = dict | list) -> Any:
    """What `write_json` or `write_checked` left in `path`: of the type `kind` (see `shapes`), with `keys`.

    Raises DamagedError.
    """
    text = read_text(path)
    try:
        value = json.loads(text)
        told = value.pop(_CHECKSUM, None) if isinstance(value, dict) else None
        if told is not None and told != _json_checksum(value):
            raise damaged(path, _CHANGED)
        _adapter(kind).validate_python(value, strict=True)
    except ValidationError as error:
        raise _invalid(path, error) from error
    except (ValueError, RecursionError) as error:
        raise damaged(path, str(error)) from error
    if lacking := [key for key in keys if key not in value]:
        raise damaged(path, f"it has no '{lacking[0]}'")
    return value


def read_record(path: Path, kind: type[SomeRecord]) -> SomeRecord:
    """The record that `path` holds; raises DamagedError for anything else."""
    value = read_json(path, kind=dict)
    try:
        return kind.model_validate(value, strict=True)
    except ValidationError as error:
        raise _invalid(path, error) from error


def _invalid(path: Path, error: ValidationError) -> DamagedError:
    first = error.errors()[0]
    return damaged(path, ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"]))))


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def write_stamped(path: Path, text: str) -> None:
    """`text`, which has comments from # on, with its checksum in the last line."""
    text = text.encode("utf-8", "backslashreplace").decode()
    write_text(path, f"{text}{_STAMP}{zlib.crc32(text.encode()):08x}\n")


def read_stamped(path: Path) -> str:
    """What `write_stamped` was given, or a text without a checksum; raises DamagedError."""
    text = read_text(path)
    start = text.rfind(_STAMP)
    if start < 0:
        return text
    if text[start:] != f"{_STAMP}{zlib.crc32(text[:start].encode()):08x}\n":
        raise damaged(path, _CHANGED)
    return text[:start]


def write_tensors(path: Path, tensors: Mapping[str, Any], told: Mapping[str, str] | None = None) -> None:
    """A safetensors file with a checksum of all it says; `told` stands in its header."""
    from safetensors.torch import save_file

    whole = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    header = dict(told or {})
    header[_CHECKSUM] = _checksum(whole, header)
    # In one entry: safetensors writes several in an order of its own, different every time.
    metadata = {_HEADER: json.dumps(header, sort_keys=True)}
    write_atomically(path, lambda part: save_file(whole, part, metadata=metadata))


def read_tensors(path: Path, *, of: str | None = None, finite: bool = True) -> dict[str, Any]:
    """The tensors of a safetensors file of ours.

    of: what the file must say that it holds (as `told`). Raises DamagedError for a file that is broken, not what was
    written, or of something else, and for NaN or infinite values where all must be `finite`.
    """
    with open_tensors(path) as file:
        told = _told(path, file)
        # Copies: what is mapped into memory cannot be replaced on Windows, nor be cut short anywhere.
        tensors = {name: _copied(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    if told and told.pop(_CHECKSUM, None) != _checksum(tensors, told):
        raise damaged(path, _CHANGED)
    if of is not None and told.get(_OF) != of:
        raise damaged(path, "it holds something else, or what an earlier version wrote")
    for name, value in tensors.items() if finite else ():
        if value.is_floating_point() and not value.isfinite().all():
            raise damaged(path, f"{name} holds NaN or infinite values")
    return tensors


def _copied(tensor: Any) -> Any:
    """With every byte as it is: a copy of truth values would make 1 of whatever is not 0."""
    from torch import uint8

    return tensor.reshape(-1).view(uint8).clone().view(tensor.dtype).reshape(tensor.shape)


def read_header(path: Path) -> dict[str, str]:
    """What `write_tensors` was told beside the tensors; raises DamagedError."""
    with open_tensors(path) as file:
        return _told(path, file)


def open_tensors(path: Path) -> Any:
    """A safetensors file of ours, mapped into memory; raises DamagedError."""
    from safetensors import SafetensorError, safe_open

    _check_regular(path)
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise damaged(path, str(error)) from error


def _told(path: Path, file: Any) -> dict[str, str]:
    try:
        return dict(json.loads((file.metadata() or {}).get(_HEADER, "{}")))
    except (ValueError, TypeError, RecursionError) as error:
        raise damaged(path, f"its header: {error}") from error


def _checksum(tensors: Mapping[str, Any], told: Mapping[str, str]) -> str:
    """CRC-32 of names, dtypes, shapes and values, and of what the header tells: of accidents, not of forgery."""
    from torch import uint8

    crc = zlib.crc32(json.dumps(sorted(told.items())).encode())
    for name, value in sorted(tensors.items()):
        crc = zlib.crc32(f"{name} {value.dtype} {list(value.shape)}".encode(), crc)
        crc = zlib.crc32(value.contiguous().reshape(-1).view(uint8).numpy(), crc)
    return f"crc32 {crc:08x}"


def kept(path: Path, read: Callable[[Path], T], warn: Callable[[str], None]) -> T | None:
    """What `read` finds in `path`; None where nothing is, or what is damaged: told by `warn` and removed, so that the
    caller makes it again. Raises DamagedError for a folder that holds something, which is none of ours."""
    try:
        return read(path)
    except FileNotFoundError:
        return None
    except DamagedError as error:
        if path.is_dir() and any(path.iterdir()):
            raise
        warn(f"{error.message}; what it held {error.step} again")
        discard(path)
        return None


def damaged(path: Path, why: str) -> DamagedError:
    """The error of a file of ours: what is to be deleted so that it is made again, and by which step."""
    made_by = (made for part in reversed(path.parts) for name, made in layout.MADE_BY.items() if part.startswith(name))
    step = next(made_by, "is made")
    hint = f"delete {layout.whole_of(path)} and run the same command again: what it held {step} again"
    return DamagedError(f"{path} is damaged: {' '.join(why.split())[:_LONGEST]}", hint, step)


def writable(folder: Path, option: str = "--output") -> None:
    """Make `folder`; raises UsageError when it cannot be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UsageError(f"cannot write to {folder}: {error.strerror}", f"choose another {option}") from error


def discard(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
