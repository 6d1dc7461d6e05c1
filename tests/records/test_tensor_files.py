"""Tensors of ours are what was written, or they are told as damaged."""

from __future__ import annotations

import json
import struct
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffcompress.errors import DamagedError
from diffcompress.records.run_files import kept, read_header, read_tensors, write_tensors

TENSORS = {
    "clean": torch.arange(12.0).view(3, 4),
    "half": torch.ones(3, dtype=torch.bfloat16),
    "index": torch.tensor([True, False]),
    "none": torch.zeros(0, 2),
}


@pytest.fixture
def file(tmp_path):
    write_tensors(tmp_path / "bank" / "a.safetensors", TENSORS, {"of": "a 0-3", "cut": "{}"})
    return tmp_path / "bank" / "a.safetensors"


def test_they_come_back_with_what_was_told(file):
    found = read_tensors(file, of="a 0-3")
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], value) and found[name].dtype == value.dtype for name, value in TENSORS.items())
    assert read_header(file)["cut"] == "{}"
    assert load_file(file).keys() == TENSORS.keys()  # and to anybody else


def test_the_same_tensors_are_the_same_bytes(file, tmp_path):
    """safetensors alone writes several entries of a header in another order each time."""
    told = {name: name * 3 for name in "abcdefgh"}
    for number in range(8):
        write_tensors(tmp_path / f"{number}.safetensors", TENSORS, told)
    assert len({(tmp_path / f"{number}.safetensors").read_bytes() for number in range(8)}) == 1


def test_every_flipped_bit_is_found(file):
    """Of values, names, shapes, offsets, and of the checksum itself."""
    whole = file.read_bytes()
    for place in range(8 * len(whole)):
        bits = bytearray(whole)
        bits[place // 8] ^= 1 << place % 8
        file.write_bytes(bytes(bits))
        with pytest.raises(DamagedError):
            read_tensors(file, of="a 0-3")


def test_another_file_of_ours_is_not_taken_for_it(file):
    with pytest.raises(DamagedError, match="something else"):
        read_tensors(file, of="a 3-6")
    save_file(TENSORS, file)  # without a word of what it is
    with pytest.raises(DamagedError, match="something else"):
        read_tensors(file, of="a 0-3")
    assert read_tensors(file).keys() == TENSORS.keys()


def test_a_header_of_nonsense_is_damage(file):
    header = json.dumps({"__metadata__": {"diffcompress": "[" * 10_000}}).encode()
    file.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(DamagedError):
        read_tensors(file)


def test_what_is_damaged_is_told_removed_and_made_again(file):
    told: list[str] = []
    read = partial(read_tensors, of="a 0-3")
    assert kept(file, read, told.append) is not None and told == []
    file.write_bytes(b"")
    assert kept(file, read, told.append) is None
    assert told[0].startswith(f"{file} is damaged: ") and told[0].endswith(
        "; what it held is drawn from the teacher again"
    )
    assert not file.exists() and kept(file, read, told.append) is None and len(told) == 1
    file.mkdir()
    assert kept(file, read, told.append) is None and not file.exists()


def test_a_folder_that_holds_something_is_not_removed(file):
    file.unlink()
    file.mkdir()
    (file / "thesis.txt").touch()
    with pytest.raises(DamagedError, match="it is a folder") as caught:
        kept(file, read_tensors, print)
    assert str(file) in caught.value.hint and (file / "thesis.txt").exists()
