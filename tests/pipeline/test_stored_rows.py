"""Rows of tables on disk, against the same tables in memory."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffcompress.pipeline.conditions import Conditions
from diffcompress.pipeline.stored_rows import StoredRows, stored_table


def in_memory(parts: list[dict[str, Tensor]], name: str) -> Tensor:
    """The oracle: all rows at once, filled up along axis 1."""
    values = [part[name] for part in parts]
    if values[0].dim() == 1:
        return torch.cat(values)
    longest = max(value.shape[1] for value in values)
    return torch.cat([torch.cat([v, v.new_zeros(len(v), longest - v.shape[1], *v.shape[2:])], 1) for v in values])


def saved(folder: Path, parts: list[dict[str, Tensor]]) -> list[Path]:
    files = [folder / f"{number}.safetensors" for number in range(len(parts))]
    for file, part in zip(files, parts, strict=True):
        save_file(part, file)
    return files


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_are_those_of_the_table_in_memory(tmp_path: Path, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    parts = [
        {
            "text": torch.randn(rows, length, 6, generator=generator).to(dtype),
            "text_mask": torch.ones(rows, length, dtype=torch.bool),
            "text.length": torch.full((rows,), length),
            "pooled": torch.randn(rows, 3, generator=generator),
        }
        for rows, length in ((4, 5), (4, 9), (3, 2), (1, 7))
    ]
    conditions = Conditions(stored_table(saved(tmp_path, parts)), 11, 11, ("a",) * 11)
    for index in ([0], [11, 11], [3, 4, 7, 8, 10, 11, 0, 3], list(range(12)), []):
        rows = conditions.rows(torch.tensor(index, dtype=torch.long))
        assert rows.keys() == parts[0].keys()
        for name, value in rows.items():
            expected = in_memory(parts, name)[torch.tensor(index, dtype=torch.long)]
            assert value.dtype == expected.dtype and torch.equal(value, expected)
    for row in (12, -1):
        with pytest.raises(IndexError, match=f"row {row} of 12"):
            conditions.rows(torch.tensor([row]))


def test_rows_are_copies_and_outlive_their_files(tmp_path: Path) -> None:
    (file,) = saved(tmp_path, [{"x": torch.zeros(4, 5)}])
    table = stored_table([file])
    table["x"][torch.tensor([1])].fill_(7)
    file.unlink()
    assert not table["x"][torch.tensor([1])].any()


def test_a_precision_that_differs_becomes_the_wider_one(tmp_path: Path) -> None:
    table = stored_table(saved(tmp_path, [{"x": torch.full((1, 2), 0.1)}, {"x": torch.ones(1, 2).bfloat16()}]))
    assert torch.equal(table["x"][torch.tensor([0, 1])], torch.tensor([[0.1, 0.1], [1.0, 1.0]]))


def test_what_was_not_asked_for_stays_on_disk(tmp_path: Path) -> None:
    def own() -> int:
        memory = psutil.Process().memory_info()
        return memory.rss - memory.shared  # pages of files are shared

    files = saved(tmp_path, [{"x": torch.randn(16, 1 << 18)} for _ in range(4)])  # 64 MiB
    before = own()
    table = stored_table(files)
    for row in range(64):
        table["x"][torch.tensor([row])]
    assert own() - before < 16 << 20


class Watched:
    """A shard that notes which of its rows are read."""

    def __init__(self, shard, seen: list[int]) -> None:
        self._shard, self._seen = shard, seen

    def get_shape(self):
        return self._shard.get_shape()

    def __getitem__(self, row):
        self._seen.append(row)
        return self._shard[row]


@pytest.mark.parametrize(("room", "reads"), [(0, 9 * 4), (3, 3 + 3 * 5), (6, 6), (99, 6)])
def test_a_row_that_fits_into_memory_is_read_once(tmp_path: Path, room: int, reads: int) -> None:
    (file,) = saved(tmp_path, [{"x": torch.randn(6, 2, 3)}])
    seen: list[int] = []
    rows = StoredRows([Watched(safe_open(file, framework="pt").get_slice("x"), seen)])
    seen.clear()
    rows.keep(room)
    whole = load_file(file)["x"]
    for index in ([0, 1, 0, 2], [3, 4, 5, 5], [0, 1, 2, 3]) * 3:
        assert torch.equal(rows[torch.tensor(index)], whole[index])
    assert len(seen) == reads


def test_rows_are_kept_as_far_as_memory_is_given(tmp_path: Path) -> None:
    files = saved(tmp_path, [{"x": torch.randn(8, 5), "y": torch.randn(8)} for _ in range(2)])
    for rows in stored_table(files, most_bytes=4 * 6 * 5 + 3).values():
        assert len(rows._kept) == 5
