"""Safetensors shards shared out over processes: finished ones stay, missing and damaged ones are made."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from torch import Tensor

from diffcompress.errors import DamagedError
from diffcompress.records import layout
from diffcompress.records.run_files import kept, read_header, read_tensors, write_tensors
from diffcompress.runtime import Progress, Runtime

Tensors = dict[str, Tensor]


def shard_path(folder: Path, index: int) -> Path:
    return folder / layout.shard(index)


def make_shards(
    folder: Path,
    total: int,
    shard_size: int,
    make: Callable[[range], Tensors],
    runtime: Runtime,
    progress: Progress,
    task: str,
    key: str = "",
    *,
    finite: bool = True,
) -> None:
    """Make every missing shard of items 0..total-1; `make(range)` returns tensors with one row per item.

    key: what the items follow from; a shard of others is made again, as is a damaged one; finite: whether values that
    are not are damage. Processes take turns by shard. A stop request is honoured between shards: raises RunStopped or
    RunInterrupted.
    """
    ranges = _ranges(total, shard_size)
    for first in range(0, len(ranges), runtime.count):
        index = first + runtime.index
        if index < len(ranges):
            file, of = shard_path(folder, index), _of(key, ranges[index])
            if kept(file, partial(read_tensors, of=of, finite=finite), progress.warn) is None:
                progress.update(task, ranges[first].start, total)  # what was there before took no time now
                write_tensors(file, make(ranges[index]), {"of": of})
                progress.update(task, ranges[min(first + runtime.count, len(ranges)) - 1].stop, total)
        runtime.stop_together()
    progress.update(task, total, total)
    runtime.wait()


def read_shards(folder: Path, total: int, shard_size: int, key: str = "") -> Tensors:
    """The tensors of all shards of a folder, end to end: `total` rows each."""
    return end_to_end(shards(folder, total, shard_size, key), total)


def shards(folder: Path, total: int, shard_size: int, key: str = "", *, finite: bool = True) -> Iterator[Tensors]:
    """The shards of a folder, read one after another."""
    for index, items in enumerate(_ranges(total, shard_size)):
        yield read_tensors(shard_path(folder, index), of=_of(key, items), finite=finite)


def are_of(folder: Path, key: str) -> bool:
    """Whether the first shard of a folder is of what `key` stands for."""
    return first_of(folder).startswith(f"{key} ")


def first_of(folder: Path) -> str:
    """What the first shard of a folder says that it holds; empty without one that can be read."""
    try:
        return read_header(shard_path(folder, 0)).get("of", "")
    except (FileNotFoundError, DamagedError):
        return ""


def _ranges(total: int, shard_size: int) -> list[range]:
    return [range(start, min(start + shard_size, total)) for start in range(0, total, shard_size)]


def _of(key: str, items: range) -> str:
    """What the header of a shard says that it holds: `key` and its first and last item."""
    return f"{key} {items.start}-{items.stop}"


def end_to_end(parts: Iterable[Tensors], total: int) -> Tensors:
    """The `total` rows of all parts. Gigabytes: beside the result, memory holds one part at a time."""
    whole: Tensors = {}
    done = 0
    for part in parts:
        for name, value in part.items():
            whole.setdefault(name, value.new_empty(total, *value.shape[1:]))[done : done + len(value)] = value
        done += len(value)
    return whole
