"""Text that the user names: of files, or through a pipe, of a size that makes sense; and the YAML in it."""

from __future__ import annotations

import errno
import os
import select
import stat
from pathlib import Path
from typing import Any

import yaml

LARGEST = 256 << 20
# For the first and for every further piece of what comes through a pipe.
PIPE_SECONDS = 10.0


def read_text(path: Path, encoding: str = "utf-8", largest: int = LARGEST) -> str:
    """The text in `path`; raises OSError with its reason, UnicodeDecodeError for what is no text."""
    found = path.stat()
    if stat.S_ISFIFO(found.st_mode):
        return _from_pipe(path, largest).decode(encoding)
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is a folder" if path.is_dir() else "it is no regular file", str(path))
    if found.st_size > largest:
        raise _too_large(path, largest)
    return path.read_text(encoding=encoding)


def _from_pipe(path: Path, largest: int) -> bytes:
    """Opened without waiting for who writes, which may be nobody."""
    source = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    parts: list[bytes] = []
    try:
        while True:
            if not select.select([source], [], [], PIPE_SECONDS)[0]:
                raise OSError(errno.ETIMEDOUT, f"nothing came through it for {PIPE_SECONDS:g} seconds", str(path))
            parts.append(os.read(source, 1 << 20))
            if not parts[-1]:
                return b"".join(parts)
            if sum(map(len, parts)) > largest:
                raise _too_large(path, largest)
    finally:
        os.close(source)


def _too_large(path: Path, largest: int) -> OSError:
    # Not EFBIG, which a disk says of what is written to it.
    return OSError(errno.EOVERFLOW, f"it has more than {largest:,} bytes", str(path))


class _Loader(yaml.SafeLoader):
    """Without aliases: merged into each other, a few lines of them take forever."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has an alias (*name): write the values out")
        return super().compose_node(parent, index)


def parse_yaml(text: str) -> Any:
    """The value of a YAML text; raises ValueError, in one line, for what is none or is nested too deeply."""
    try:
        return yaml.load(text, _Loader)  # noqa: S506 (a SafeLoader)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that is none, a number without end
        raise ValueError(" ".join(str(error).split())) from error
