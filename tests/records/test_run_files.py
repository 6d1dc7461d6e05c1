"""Files of ours that are damaged are named, with what makes them again."""

import functools
import json

import pytest
import torch
from safetensors.torch import save_file

from diffcompress.errors import DamagedError
from diffcompress.records.run_files import read_json, read_tensors, write_checked, write_json


def empty(path):
    path.write_bytes(b"")


def cut(path):
    path.write_bytes(path.read_bytes()[:-3])


def garbled(path):
    path.write_bytes(b"\xff\xfe\x00" + path.read_bytes()[3:])


def a_folder(path):
    path.unlink()
    path.mkdir()


def other_json(path):
    path.write_text("[1]")


@pytest.mark.parametrize("damage", [empty, cut, garbled, a_folder, other_json])
@pytest.mark.parametrize("suffix", ["json", "safetensors"])
def test_a_damaged_file_is_named_with_what_makes_it_again(tmp_path, damage, suffix):
    file = tmp_path / "bank" / f"shard.{suffix}"
    file.parent.mkdir()
    if suffix == "json":
        write_json(file, {"key": "a"})
    else:
        save_file({"clean": torch.ones(2)}, file)
    read = functools.partial(read_json, kind=dict) if suffix == "json" else read_tensors
    assert read(file)
    damage(file)
    with pytest.raises(DamagedError) as caught:
        read(file)
    assert caught.value.message.startswith(f"{file} is damaged: ")
    assert "\n" not in caught.value.message
    assert caught.value.hint == (
        f"delete {file} and run the same command again: what it held is drawn from the teacher again"
    )


def test_of_a_checkpoint_the_whole_is_to_be_made_again(tmp_path):
    (tmp_path / "stage-1-lift" / "final").mkdir(parents=True)
    file = tmp_path / "stage-1-lift" / "final" / "state.json"
    file.write_text("{}")
    with pytest.raises(DamagedError, match="it has no 'step'") as caught:
        read_json(file, "step")
    assert caught.value.hint.startswith(f"delete {file.parent} and") and "is trained again" in caught.value.hint


def test_values_that_are_not_finite_are_damage(tmp_path):
    file = tmp_path / "a.safetensors"
    save_file({"clean": torch.tensor([1.0, float("nan")]), "index": torch.ones(1).long()}, file)
    with pytest.raises(DamagedError, match="clean holds NaN"):
        read_tensors(file)
    assert read_tensors(file, finite=False)["index"].tolist() == [1]


def test_what_is_missing_is_no_damage_and_lists_are_read_where_they_are_wanted(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "nowhere.json")
    (tmp_path / "list.json").write_text(json.dumps([1]))
    assert read_json(tmp_path / "list.json", kind=list) == [1]


def test_a_changed_digit_of_a_checked_file_is_found(tmp_path):
    file = tmp_path / "metrics.json"
    value = {"metrics": {"fd": {"value": 0.18, "samples": 1024, "unit": ""}}, "warnings": ["0.1 \u00b5s"], "big": 1e-30}
    write_checked(file, value)
    assert read_json(file) == value
    text = file.read_text(encoding="utf-8")
    for place in (place for place, letter in enumerate(text) if letter.isdigit()):
        changed = "7" if text[place] != "7" else "3"
        file.write_text(text[:place] + changed + text[place + 1 :], encoding="utf-8")
        with pytest.raises(DamagedError, match="its checksum is not that of what it holds"):
            read_json(file)
    write_json(file, value)  # as earlier versions did
    assert read_json(file) == value
