"""Which weight files are chosen, that they are read tensor by tensor, and what a text pipeline must have."""

from __future__ import annotations

import json
import struct

import psutil
import pytest
import torch
from safetensors.torch import save_file

from diffcompress.errors import UsageError
from diffcompress.pipeline.load import check_teacher
from diffcompress.sources.resolve import resolve
from diffcompress.sources.state import StoredState
from diffcompress.sources.variants import choose, choose_files
from diffcompress.sources.weights import open_state, require_parts
from tests import tiny
from tests.families import pipe_stable_diffusion

MODEL = "diffusion_pytorch_model"


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (
            [f"{MODEL}.safetensors", f"{MODEL}.fp16.safetensors", f"{MODEL}.non_ema.safetensors", f"{MODEL}.bin"],
            [f"{MODEL}.safetensors"],
        ),
        ([f"{MODEL}.non_ema.safetensors", f"{MODEL}.fp16.safetensors"], [f"{MODEL}.fp16.safetensors"]),
        ([f"{MODEL}.fp16.bin", f"{MODEL}.bin", "model.onnx"], [f"{MODEL}.bin"]),
        (["anything.safetensors"], []),
        ([f"{MODEL}.bin", "pytorch_lora_weights.safetensors"], [f"{MODEL}.bin"]),
        (["pytorch_model.bin", "adapter_model.safetensors"], ["pytorch_model.bin"]),
        ([f"{MODEL}.bin", "vae-ft-mse-840000-ema-pruned.safetensors"], [f"{MODEL}.bin"]),
        (["config.json", "vocab.json"], []),
        (
            ["model-00002-of-00002.safetensors", "model-00001-of-00002.safetensors", "model.fp16.safetensors"],
            ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
        ),
        (
            [f"{MODEL}.fp16-00001-of-00002.safetensors", f"{MODEL}.fp16-00002-of-00002.safetensors"],
            [f"{MODEL}.fp16-00001-of-00002.safetensors", f"{MODEL}.fp16-00002-of-00002.safetensors"],
        ),
        (
            [f"{MODEL}-00001-of-00002.fp16.safetensors", f"{MODEL}-00002-of-00002.fp16.safetensors"],
            [f"{MODEL}-00001-of-00002.fp16.safetensors", f"{MODEL}-00002-of-00002.fp16.safetensors"],
        ),
    ],
)
def test_one_variant_is_chosen(names, chosen):
    assert choose(names, "unet") == chosen


def test_what_belongs_to_the_chosen_weights():
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    small = ["config.json", "model.safetensors.index.json"]
    others = ["model.fp16.safetensors", "model.safetensors.index.fp16.json", "pytorch_model.bin", "flax_model.msgpack"]
    assert choose_files([*others, *shards, *small], "text_encoder") == sorted([*shards, *small])
    tokenizer = ["merges.txt", "special_tokens_map.json", "spiece.model", "tokenizer_config.json", "vocab.json"]
    assert choose_files(tokenizer, "tokenizer") == tokenizer


def test_a_missing_shard_is_numbered():
    with pytest.raises(UsageError, match="unet lacks the shard 2 of 3"):
        choose([f"{MODEL}-0000{i}-of-00003.safetensors" for i in (1, 3)], "unet")


def test_a_large_state_is_not_read_whole(tmp_path):
    """Two shards of a gigabyte each, all hole but for one tensor."""
    for number in (1, 2):
        small, large = torch.ones(4), 2**30
        header = {
            f"small.{number}": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
            f"large.{number}": {"dtype": "F32", "shape": [large // 4], "data_offsets": [16, 16 + large]},
        }
        text = json.dumps(header).encode()
        with (tmp_path / f"{MODEL}-0000{number}-of-00002.safetensors").open("wb") as stream:
            stream.write(struct.pack("<Q", len(text)) + text + small.numpy().tobytes())
            stream.truncate(8 + len(text) + 16 + large)
    before = psutil.Process().memory_info().rss
    state = StoredState(sorted(tmp_path.iterdir()))
    assert len(state) == 4
    assert state.shape("large.2") == (2**28,)
    assert torch.equal(state["small.1"] + state["small.2"], torch.full((4,), 2.0))
    assert psutil.Process().memory_info().rss - before < 100 * 2**20


def test_a_damaged_tensor_is_found_when_it_is_read(tmp_path):
    save_file({"good": torch.ones(3), "bad": torch.tensor([1.0, float("nan")])}, tmp_path / "model.safetensors")
    state = StoredState([tmp_path / "model.safetensors"])
    assert torch.equal(state["good"], torch.ones(3))
    with pytest.raises(UsageError, match="bad holds NaN"):
        state["bad"]
    with pytest.raises(KeyError):
        state["nothing"]


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_what_is_too_coarse_has_no_dtype_whatever_the_file(tmp_path, suffix):
    tensors = {
        "half": torch.ones(2, dtype=torch.float16),
        "eighth": torch.ones(2).to(torch.float8_e4m3fn),
        "whole": torch.ones(2, dtype=torch.int8),
    }
    (save_file if suffix == ".safetensors" else torch.save)(tensors, tmp_path / f"model{suffix}")
    state = StoredState([tmp_path / f"model{suffix}"])
    assert [state.dtype_of(name) for name in tensors] == ["float16", None, None]


def test_bfloat16_is_kept_as_it_is_stored(tmp_path):
    pipeline = tiny.save_pipeline(tmp_path / "ddpm", dtype=torch.bfloat16, variant="bf16")
    state = open_state(resolve(str(pipeline)))
    assert state.dtype == torch.bfloat16
    assert {value.dtype for value in state.values()} == {torch.bfloat16}


def test_pickled_weights_are_told(tmp_path):
    pipeline = tiny.save_pipeline(tmp_path / "ddpm")
    torch.save(tiny.unet().state_dict(), pipeline / "unet" / f"{MODEL}.bin")
    assert resolve(str(pipeline)).notes == ()
    (pipeline / "unet" / f"{MODEL}.safetensors").unlink()
    assert any("weights_only=True" in note for note in resolve(str(pipeline)).notes)


@pytest.mark.parametrize(
    ("part", "changes", "said"),
    [
        ("vae", {"layers_per_block": 10**6}, "1000000 in layers_per_block, where no model has more than 1,000"),
        ("text_encoder", {"num_hidden_layers": 10**6}, "1000000 in num_hidden_layers"),
        ("text_encoder", {"hidden_size": 10**30}, "in hidden_size"),
    ],
)
def test_configs_of_other_parts_are_bounded_too(tmp_path, part, changes, said):
    pipe_stable_diffusion.pipeline().save_pretrained(tmp_path)
    file = tmp_path / part / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(UsageError, match=said):
        check_teacher(resolve(str(tmp_path)))
    file.write_text("[" * 10**5)
    with pytest.raises(UsageError, match="too deeply nested"):
        check_teacher(resolve(str(tmp_path)))


def test_every_part_that_a_text_pipeline_lacks_is_named(tmp_path):
    pipeline = tiny.save_pipeline(tmp_path / "text")
    for part, files in {"tokenizer": ["tokenizer_config.json"], "text_encoder": ["config.json"], "vae": []}.items():
        (pipeline / part).mkdir()
        for file in files:
            (pipeline / part / file).write_text("{}")
    found = resolve(str(pipeline))
    names = ["tokenizer", "text_encoder", "vae", "tokenizer_2"]
    with pytest.raises(UsageError, match="incomplete") as caught:
        require_parts(found, names)
    for said in ("tokenizer (no vocabulary)", "text_encoder (no weights)", "vae (no such", "tokenizer_2 (no such"):
        assert said in caught.value.message
    (pipeline / "tokenizer" / "vocab.json").write_text("{}")
    (pipeline / "text_encoder" / "model.safetensors").write_bytes(b"")
    require_parts(found, ["tokenizer", "text_encoder", "scheduler", "unet"])
    with pytest.raises(UsageError, match="without a pipeline, and its tokenizer and vae"):
        require_parts(resolve(str(pipeline / "unet")), ["tokenizer", "vae"])
