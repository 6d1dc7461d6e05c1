"""What samples are conditioned on: nothing, class labels, or prompts as the teacher's own pipeline encodes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

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
    disk; count: conditions to draw from, rows start..start+count-1; null: the row of the null conditioning, None where
    there is none. texts: the prompt of each row, if it has one; warnings: what the user should know of them; held_out:
    how many rows after those are drawn for evaluation alone.
    """

    table: Mapping[str, Tensor | StoredRows] = field(default_factory=dict)
    count: int = 1
    null: int | None = None
    texts: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    start: int = 0
    held_out: int = 0

    @property
    def apart(self) -> Conditions:
        """Those that nothing is taught on; the same where there are no others."""
        if not self.held_out:
            return self
        return replace(self, start=self.start + self.count, count=self.held_out, held_out=0)

    @property
    def drawn_texts(self) -> tuple[str, ...]:
        """The prompts of the conditions to draw from."""
        return self.texts[self.start : self.start + self.count]

    def rows(self, index: Tensor, *, pinned: bool = False) -> dict[str, Tensor]:
        """The conditioning of `index` `[B]`: tensors with B rows, empty for unconditional denoisers; see `gathered`."""
        return {name: gathered(values, index, pinned=pinned) for name, values in self.table.items()}

    def draw(self, indices: Sequence[int], seed: int) -> Tensor:
        """A row for each of the samples `indices`, from (seed, i) alone; never the null row."""
        drawn = [torch.randint(self.count, (1,), generator=generator(seed, streams.CONDITION, i)) for i in indices]
        return self.start + torch.cat(drawn) if drawn else torch.empty(0, dtype=torch.long)

    @property
    def digest(self) -> str | None:
        """SHA-256 of the prompts to draw from; None without text."""
        return fingerprints.of_text("\n".join(self.drawn_texts)) if self.texts else None

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
