"""Tables that stay on disk: rows in safetensors shards, copied out when asked for and kept while there is room."""

from __future__ import annotations

import bisect
import functools
import itertools
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffcompress.records.run_files import open_tensors


class StoredRows:
    """One tensor `[rows, ...]` whose rows lie end to end in shards; an axis 1 that differs is filled up with zeros.

    As many different rows as there is room for (`keep`) are read once and stay in memory. Of the others, pages of the
    files that were read stay only as long as nothing else needs the memory.
    """

    def __init__(self, shards: Sequence[Any]) -> None:
        """shards: slices of safetensors files (`safe_open(...).get_slice(name)`)."""
        shapes = [shard.get_shape() for shard in shards]
        self._shards = shards
        self._starts = [0, *itertools.accumulate(shape[0] for shape in shapes)]
        longest = [max(shape[1] for shape in shapes)] if len(shapes[0]) > 1 else []
        self.shape = (self._starts[-1], *longest, *shapes[0][2:])
        self.dtype = functools.reduce(torch.promote_types, (shard[0].dtype for shard in shards))
        self._lock = threading.Lock()
        self.keep(0)

    @property
    def row_bytes(self) -> int:
        return torch.Size(self.shape[1:]).numel() * self.dtype.itemsize

    def whole(self) -> Tensor:
        """All rows."""
        return torch.cat([shard[:] for shard in self._shards])

    def followed_by(self, other: StoredRows) -> StoredRows:
        """These rows, then those of `other`; none of them is kept in memory."""
        return StoredRows([*self._shards, *other._shards])

    def keep(self, rows: int) -> None:
        """Make room for so many rows; memory that nothing is written to costs nothing."""
        self._kept = torch.empty(min(rows, self.shape[0]), *self.shape[1:], dtype=self.dtype)
        self._places: dict[int, int] = {}

    def __getitem__(self, index: Tensor) -> Tensor:
        """Copies of the rows `index` `[B]`, as one tensor `[B, ...]`; raises IndexError for rows that are not there."""
        return self.take(index, torch.empty(len(index), *self.shape[1:], dtype=self.dtype))

    def take(self, index: Tensor, found: Tensor) -> Tensor:
        """Copies the rows `index` `[B]` into `found` `[B, ...]`, which it returns. Several threads may ask."""
        rows = index.tolist()
        with self._lock:
            for row in dict.fromkeys(rows):
                if row not in self._places and len(self._places) < len(self._kept):
                    self._read(row, self._kept[len(self._places)])
                    self._places[row] = len(self._places)
            places = [self._places.get(row) for row in rows]
        if None not in places:
            return torch.index_select(self._kept, 0, torch.tensor(places, dtype=torch.long), out=found)
        for row, place, target in zip(rows, places, found, strict=True):
            if place is None:
                self._read(row, target)
            else:
                target.copy_(self._kept[place])
        return found

    def _read(self, row: int, target: Tensor) -> None:
        if not 0 <= row < self.shape[0]:
            raise IndexError(f"row {row} of {self.shape[0]}")
        shard = bisect.bisect_right(self._starts, row) - 1
        value = self._shards[shard][row - self._starts[shard]]
        if value.dim():
            target[len(value) :] = 0
            target = target[: len(value)]
        target.copy_(value)


def gathered(table: Tensor | StoredRows, index: Tensor, *, pinned: bool = False) -> Tensor:
    """Copies of the rows `index` `[B]` of a table on the CPU; in pinned memory, which a GPU reads while it computes.

    Pinned memory is used over and over: fresh memory of tens of megabytes costs more than what is copied into it.
    """
    found = torch.empty(len(index), *table.shape[1:], dtype=table.dtype, pin_memory=pinned)
    return table.take(index, found) if isinstance(table, StoredRows) else torch.index_select(table, 0, index, out=found)


def stored_table(files: Sequence[Path], most_bytes: int = 0) -> dict[str, StoredRows]:
    """Every tensor of the first of `files`, continued by the others; at most so many bytes of their rows are kept in
    memory. Raises DamagedError."""
    shards = [open_tensors(file) for file in files]
    table = {name: StoredRows([shard.get_slice(name) for shard in shards]) for name in shards[0].keys()}  # noqa: SIM118
    for rows in table.values():
        rows.keep(most_bytes // max(1, sum(one.row_bytes for one in table.values())))
    return table
