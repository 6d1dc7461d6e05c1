"""What samples are conditioned on: nothing, class labels, or prompts as the teacher's own pipeline encodes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from diffcompress.families.base import Config, Family
from diffcompress.noise import generator, streams
from diffcompress.pipeline.stored_rows import StoredRows, gathered
from diffcompress.records import fingerprints


@dataclass(frozen=True)
class Conditions:
    """Every conditioning that samples are drawn with, as the rows of a table.

    table: tensors with a row for each condition, by the denoiser's keyword (nested ones with a dot), in memory or on
    disk; count: conditions to draw from, rows 0..count-1; null: the row of the null conditioning, None where there is
    none. texts: the prompt of each row, if it has one; warnings: what the user should know of them.
    """

    table: Mapping[str, Tensor | StoredRows] = field(default_factory=dict)
    count: int = 1
    null: int | None = None
    texts: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def rows(self, index: Tensor, *, pinned: bool = False) -> dict[str, Tensor]:
        """The conditioning of `index` `[B]`: tensors with B rows, empty for unconditional denoisers; see `gathered`."""
        return {name: gathered(values, index, pinned=pinned) for name, values in self.table.items()}

    def draw(self, indices: Sequence[int], seed: int) -> Tensor:
        """A row for each of the samples `indices`, from (seed, i) alone; never the null row."""
        drawn = [torch.randint(self.count, (1,), generator=generator(seed, streams.CONDITION, i)) for i in indices]
        return torch.cat(drawn) if drawn else torch.empty(0, dtype=torch.long)

    @property
    def digest(self) -> str | None:
        """SHA-256 of the prompts; None without text."""
        return fingerprints.of_text("\n".join(self.texts)) if self.texts else None

    def nulls(self, count: int) -> Tensor:
        """The null row, `count` times."""
        assert self.null is not None
        return torch.full((count,), self.null)


def as_dtype(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """`tensors`, those of floating point in `dtype`, labels and masks as they are."""
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in tensors.items()}


def without_text(family: Family, config: Config) -> Conditions:
    """The conditions of an unconditional or class-conditional denoiser."""
    classes, null = family.num_classes(config), family.null_class(config)
    if classes is None:
        return Conditions()
    rows = classes if null is None else max(classes, null + 1)
    return Conditions({"class_labels": torch.arange(rows)}, classes, null)
