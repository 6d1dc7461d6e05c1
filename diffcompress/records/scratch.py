"""Temporary folders: removed in the end, and after a kill by whoever needs one next."""

from __future__ import annotations

import contextlib
import tempfile
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout

from diffcompress.records.run_files import discard

_PREFIX, _LOCK = "diffcompress-", ".scratch"
# Of an empty folder without a lock: its process was killed before it took one.
OLDEST = 24 * 3600.0


@contextlib.contextmanager
def scratch(purpose: str) -> Iterator[Path]:
    """An empty folder that is this process's own as long as it lives."""
    _clean()
    with tempfile.TemporaryDirectory(prefix=f"{_PREFIX}{purpose}-", ignore_cleanup_errors=True) as folder:
        with FileLock(Path(folder) / _LOCK):
            inside = Path(folder) / purpose
            inside.mkdir()
            yield inside


Owner = TypeVar("Owner")


def kept_for(owner: Owner, held: contextlib.ExitStack) -> Owner:
    """`owner`, with what `held` holds there as long as it is: it reads from it."""
    weakref.finalize(owner, held.pop_all().close)
    return owner


def _clean() -> None:
    """Remove the folders of processes that are gone: nobody holds their lock."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError, Timeout):  # another user's, gone meanwhile, or in use
            if (folder / _LOCK).is_file():
                with FileLock(folder / _LOCK, timeout=0):
                    pass
                discard(folder)
            elif time.time() - folder.stat().st_mtime > OLDEST:
                folder.rmdir()
