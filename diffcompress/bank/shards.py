"""Safetensors shards shared out over processes: finished ones stay, missing ones are made."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from diffcompress.records.run_folder import read_tensors, write_atomically
from diffcompress.runtime import Progress, Runtime

Tensors = dict[str, Tensor]


def shard_path(folder: Path, index: int) -> Path:
    return folder / f"shard-{index:05d}.safetensors"


def make_shards(
    folder: Path,
    total: int,
    shard_size: int,
    make: Callable[[range], Tensors],
    runtime: Runtime,
    progress: Progress,
    task: str,
) -> None:
    """Make every missing shard of items 0..total-1; `make(range)` returns tensors with one row per item.

    Processes take turns by shard. A stop request is honoured between shards: raises RunStopped or RunInterrupted.
    """
    ranges = [range(start, min(start + shard_size, total)) for start in range(0, total, shard_size)]
    for first in range(0, len(ranges), runtime.count):
        index = first + runtime.index
        if index < len(ranges) and not shard_path(folder, index).exists():
            progress.update(task, ranges[first].start, total)  # what was there before took no time now
            tensors = {name: value.contiguous() for name, value in make(ranges[index]).items()}
            write_atomically(shard_path(folder, index), functools.partial(save_file, tensors))
            progress.update(task, ranges[min(first + runtime.count, len(ranges)) - 1].stop, total)
        if runtime.should_stop():
            runtime.wait()
            runtime.stop.raise_if_set()
    progress.update(task, total, total)
    runtime.wait()


def read_shards(folder: Path, total: int, shard_size: int) -> Tensors:
    """All shards of a folder, end to end."""
    return end_to_end(shards(folder, total, shard_size), total)


def shards(folder: Path, total: int, shard_size: int) -> Iterator[Tensors]:
    """One after another."""
    return (read_tensors(shard_path(folder, index)) for index in range(-(-total // shard_size)))


def end_to_end(parts: Iterable[Tensors], total: int) -> Tensors:
    """The `total` rows of all parts. Gigabytes: beside the result, memory holds one part at a time."""
    whole: Tensors = {}
    done = 0
    for part in parts:
        for name, value in part.items():
            whole.setdefault(name, value.new_empty(total, *value.shape[1:]))[done : done + len(value)] = value
        done += len(value)
    return whole
