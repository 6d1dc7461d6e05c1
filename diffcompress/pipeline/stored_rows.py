"""Tables that stay on disk: rows in safetensors shards, mapped into memory and copied out when they are asked for."""

from __future__ import annotations

import bisect
import functools
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffcompress.records.run_files import open_tensors


class StoredRows:
    """One tensor `[rows, ...]` whose rows lie end to end in shards; an axis 1 that differs is filled up with zeros.

    Pages of the files that were read stay in memory only as long as nothing else needs it.
    """

    def __init__(self, shards: Sequence[Any]) -> None:
        """shards: slices of safetensors files (`safe_open(...).get_slice(name)`)."""
        shapes = [shard.get_shape() for shard in shards]
        self._shards = shards
        self._starts = [0, *itertools.accumulate(shape[0] for shape in shapes)]
        longest = [max(shape[1] for shape in shapes)] if len(shapes[0]) > 1 else []
        self.shape = (self._starts[-1], *longest, *shapes[0][2:])
        self.dtype = functools.reduce(torch.promote_types, (shard[0].dtype for shard in shards))

    def __getitem__(self, index: Tensor) -> Tensor:
        """Copies of the rows `index` `[B]`, as one tensor `[B, ...]`; raises IndexError for rows that are not there."""
        found = torch.empty(len(index), *self.shape[1:], dtype=self.dtype)
        for place, row in zip(found, index.tolist(), strict=True):
            if not 0 <= row < self.shape[0]:
                raise IndexError(f"row {row} of {self.shape[0]}")
            shard = bisect.bisect_right(self._starts, row) - 1
            value = self._shards[shard][row - self._starts[shard]]
            if value.dim():
                place[len(value) :] = 0
                place = place[: len(value)]
            place.copy_(value)
        return found


def stored_table(files: Sequence[Path]) -> dict[str, StoredRows]:
    """Every tensor of the first of `files`, continued by the others. Raises DamagedError."""
    shards = [open_tensors(file) for file in files]
    return {name: StoredRows([shard.get_slice(name) for shard in shards]) for name in shards[0].keys()}  # noqa: SIM118
