"""Parts in half precision: what is rounded, to what, and what stays."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from diffcompress.sources.halves import halve, saving
from diffcompress.sources.linking import link_part
from diffcompress.sources.resolve import resolve
from tests.families import pipe_sd3
from tests.families.tiny_text import t5_encoder


def part(folder: Path, **values: Any) -> Path:
    folder.mkdir()
    save_file({name: torch.as_tensor(value) for name, value in values.items()}, folder / "model.safetensors")
    return folder


def test_floats_are_halved_and_the_teachers_own_file_stays(tmp_path: Path) -> None:
    weight = torch.randn(64, generator=torch.Generator().manual_seed(0))
    place = part(tmp_path / "teacher", weight=weight, small=weight.half(), places=torch.arange(3))
    (tmp_path / "ours").mkdir()
    os.link(place / "model.safetensors", tmp_path / "ours" / "model.safetensors")
    assert halve(tmp_path / "ours") == torch.float16
    ours = load_file(tmp_path / "ours" / "model.safetensors")
    assert {name: value.dtype for name, value in ours.items()} == {
        "weight": torch.float16, "small": torch.float16, "places": torch.int64
    }  # fmt: skip
    assert torch.equal(ours["weight"], weight.half()) and torch.equal(ours["places"], torch.arange(3))
    assert torch.equal(load_file(place / "model.safetensors")["weight"], weight)
    assert [file.name for file in (tmp_path / "ours").iterdir()] == ["model.safetensors"]
    assert halve(tmp_path / "ours") is None  # nothing is left to do


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([1.0, 70_000.0], torch.bfloat16),  # beyond float16's range
        ([1e-7, 3e-8], torch.bfloat16),  # where float16 has next to no digits
        ([1.0, 1e-8], torch.float16),  # too little beside the rest to count
        ([0.0, 0.0], torch.float16),
        ([1.0, float("nan")], None),
        ([float("-inf"), 1.0], None),
        ([3.402823e38, 1.0], None),  # what bfloat16 would round to infinity
    ],
)
def test_the_dtype_is_one_that_holds_every_value(tmp_path: Path, values: list[float], dtype: Any) -> None:
    place = part(tmp_path / "vae", weight=torch.ones(2), odd=torch.tensor(values))
    assert halve(place) == dtype
    found = load_file(place / "model.safetensors")
    assert {value.dtype for value in found.values()} == {dtype or torch.float32}
    if dtype is not None:
        assert torch.isfinite(found["odd"]).all()


def test_shards_have_one_dtype_and_an_index_that_counts_them(tmp_path: Path) -> None:
    encoder = t5_encoder(8)
    encoder.save_pretrained(tmp_path / "t5", max_shard_size="2KB")
    before = sum(file.stat().st_size for file in (tmp_path / "t5").glob("*.safetensors"))
    link_part(tmp_path / "t5", tmp_path / "ours")
    index = tmp_path / "ours" / "model.safetensors.index.json"
    total = json.loads(index.read_text())["metadata"]["total_size"]
    assert halve(tmp_path / "ours") == torch.float16
    after = json.loads(index.read_text())
    assert after["metadata"]["total_size"] == total / 2 and len(set(after["weight_map"].values())) > 1
    assert sum(file.stat().st_size for file in (tmp_path / "ours").glob("*.safetensors")) < before
    # It loads in what its config says, as before.
    loaded = transformers.T5EncoderModel.from_pretrained(tmp_path / "ours")
    assert loaded.dtype == torch.float32
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, encoder.state_dict()[name].half().float())


def test_an_encoder_whose_config_is_silent_still_loads_in_float32(tmp_path: Path) -> None:
    t5_encoder(8).save_pretrained(tmp_path / "t5")
    config = tmp_path / "t5" / "config.json"
    said = {k: v for k, v in json.loads(config.read_text()).items() if k not in ("dtype", "torch_dtype")}
    config.write_text(json.dumps(said))
    assert halve(tmp_path / "t5") == torch.float16
    assert {p.dtype for p in transformers.T5EncoderModel.from_pretrained(tmp_path / "t5").parameters()} == {
        torch.float32
    }


def test_what_is_planned_to_be_saved_is_saved_and_an_autoencoder_says_what_it_said(tmp_path: Path) -> None:
    pipe_sd3.pipeline().save_pretrained(tmp_path / "sd3")
    teacher = resolve(str(tmp_path / "sd3"))
    config = (tmp_path / "sd3" / "vae" / "config.json").read_bytes()
    assert json.loads(config)["force_upcast"] is True
    for name in ("vae", "text_encoder", "text_encoder_3", "tokenizer", "scheduler"):
        before = sum(file.stat().st_size for file in (tmp_path / "sd3" / name).iterdir())
        planned = saving(teacher, name)
        assert (halve(tmp_path / "sd3" / name) is None) == (planned == 0) == (name in ("tokenizer", "scheduler"))
        after = sum(file.stat().st_size for file in (tmp_path / "sd3" / name).iterdir())
        assert before - after == pytest.approx(planned, abs=0.1 * planned)
        assert saving(teacher, name) == 0
    assert (tmp_path / "sd3" / "vae" / "config.json").read_bytes() == config
    assert AutoencoderKL.from_pretrained(tmp_path / "sd3" / "vae").dtype == torch.float32
