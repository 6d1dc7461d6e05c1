"""Loading weights: half precision, variants, shards, pickles, and every way in which a file can be bad."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DModel
from safetensors.torch import load_file, save_file

from diffcompress.errors import UsageError
from diffcompress.pipeline.load import check_teacher, load
from diffcompress.sources.resolve import resolve
from tests import tiny

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def test_the_loaded_denoiser_is_that_of_diffusers(pipeline):
    loaded = load(resolve(str(pipeline)))
    theirs = UNet2DModel.from_pretrained(pipeline / "unet").eval()
    noisy, timestep = torch.randn(2, 1, 8, 8), torch.tensor([3, 700])
    with torch.no_grad():
        assert torch.equal(loaded.predict(noisy, timestep, {}), theirs(noisy, timestep).sample)
    assert not loaded.denoiser.training
    assert not any(p.requires_grad for p in loaded.denoiser.parameters())


def test_half_precision_is_computed_in_float32_and_remembered(tmp_path):
    tiny.save_pipeline(tmp_path / "half", dtype=torch.float16, variant="fp16")
    loaded = load(resolve(str(tmp_path / "half")))
    assert loaded.dtype == torch.float16
    assert {p.dtype for p in loaded.denoiser.parameters()} == {torch.float32}


def test_shards_are_read_together(pipeline):
    whole = load(resolve(str(pipeline)))
    UNet2DModel.from_pretrained(pipeline / "unet").save_pretrained(pipeline / "unet", max_shard_size="200KB")
    assert len(list((pipeline / "unet").glob("*-of-*.safetensors"))) > 1
    loaded = load(resolve(str(pipeline)))
    pairs = zip(whole.denoiser.state_dict().values(), loaded.denoiser.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    next((pipeline / "unet").glob("*-of-*.safetensors")).unlink()
    with pytest.raises(UsageError, match="lacks the shard"):
        load(resolve(str(pipeline)))


def test_the_fingerprint_follows_weights_and_configs(pipeline):
    before = load(resolve(str(pipeline))).fingerprint
    assert load(resolve(str(pipeline))).fingerprint == before
    scheduler = pipeline / "scheduler" / "scheduler_config.json"
    scheduler.write_text(json.dumps({**json.loads(scheduler.read_text()), "beta_end": 0.03}))
    other = load(resolve(str(pipeline))).fingerprint
    state = load_file(pipeline / WEIGHTS)
    state["conv_in.bias"] = state["conv_in.bias"] + 1
    save_file(state, pipeline / WEIGHTS)
    assert len({before, other, load(resolve(str(pipeline))).fingerprint}) == 3


def _changed(change):
    def damage(file):
        state = load_file(file)
        change(state)
        save_file(state, file)

    return damage


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda file: file.unlink(), "holds no weights"),
        (lambda file: file.write_bytes(b""), "cannot be read as safetensors"),
        (lambda file: file.write_bytes(file.read_bytes()[:-100]), "cannot be read as safetensors"),
        (lambda file: file.write_bytes(b"not a tensor file at all"), "cannot be read as safetensors"),
        (_changed(lambda s: s.update({"conv_in.bias": torch.zeros(3)})), r"conv_in.bias has shape \[3\]"),
        (_changed(lambda s: s["conv_in.bias"].fill_(float("nan"))), "conv_in.bias holds NaN"),
        (
            _changed(lambda s: s.update({"conv_in.bias": s["conv_in.bias"].to(torch.int8)})),
            "conv_in.bias is stored as int",
        ),
        (
            _changed(lambda s: s.update({"conv_in.bias": s["conv_in.bias"].to(torch.float8_e4m3fn)})),
            "less than 16 bits",
        ),
        (_changed(lambda s: s["conv_out.bias"].fill_(float("inf"))), "conv_out.bias holds NaN or inf"),
        (_changed(lambda s: s.pop("conv_in.bias")), r"1 missing tensor\(s\), first conv_in.bias"),
        (_changed(lambda s: s.update({"extra.bias": torch.zeros(3)})), r"1 unknown tensor\(s\), first extra.bias"),
    ],
    ids=["missing", "empty", "truncated", "noise", "shape", "nan", "integers", "8 bits", "inf", "lacking", "extra"],
)
def test_bad_weights_are_named(pipeline, damage, said):
    damage(pipeline / WEIGHTS)
    with pytest.raises(UsageError, match=said) as caught:
        load(resolve(str(pipeline)))
    assert caught.value.hint
    assert "\n" not in caught.value.message


def test_a_config_that_builds_nothing(pipeline):
    file = pipeline / "unet" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "down_block_types": ["NoBlock", "NoBlock"]}))
    with pytest.raises(UsageError):
        load(resolve(str(pipeline)))


class Trap:
    """Unpickling it would run code."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('code in a pickle was run')",))


def test_a_bare_pickled_state_dict_is_read(pipeline):
    theirs = load(resolve(str(pipeline)))
    torch.save(load_file(pipeline / WEIGHTS), pipeline / "unet" / "diffusion_pytorch_model.bin")
    (pipeline / WEIGHTS).unlink()
    loaded = load(resolve(str(pipeline)))
    pairs = zip(theirs.denoiser.state_dict().values(), loaded.denoiser.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("read", [load, check_teacher])
@pytest.mark.parametrize(
    "content",
    [Trap(), {"model": Trap()}, {"model": {"a": torch.zeros(1)}}, [torch.zeros(1)]],
    ids=["trap", "trap inside", "nested", "list"],
)
def test_any_other_pickle_is_refused_with_how_to_convert_it(pipeline, content, read):
    (pipeline / WEIGHTS).unlink()
    torch.save(content, pipeline / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(UsageError, match="is a pickle") as caught:
        read(resolve(str(pipeline)))
    assert "save_file" in caught.value.hint


@pytest.mark.parametrize("read", [load, check_teacher])
@pytest.mark.parametrize("changes", [{"block_out_channels": (32, 64)}, {"in_channels": 3}, {"layers_per_block": 2}])
def test_pickled_weights_of_another_model_are_refused(pipeline, changes, read):
    (pipeline / WEIGHTS).unlink()
    torch.save(tiny.unet(**changes).state_dict(), pipeline / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(UsageError, match="does not fit its config"):
        read(resolve(str(pipeline)))


@pytest.mark.parametrize("nested", [False, True], ids=["what else is in it", "of a training framework"])
def test_the_command_that_converts_a_pickle_does(pipeline, tmp_path, nested):
    folder = pipeline.rename(tmp_path / "it's $HOME")
    state = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    more = {"epoch": 3, "callbacks": Path("x")}
    torch.save({"state_dict": state, **more} if nested else state | more, (folder / WEIGHTS).with_suffix(".bin"))
    with pytest.raises(UsageError, match="is a pickle") as caught:
        load(resolve(str(folder)))
    command = caught.value.hint.partition(": python ")[2]
    subprocess.run(f"{shlex.quote(sys.executable)} {command}", shell=True, check=True, cwd=tmp_path)
    loaded = load(resolve(str(folder))).denoiser.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in state.items())


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_a_pointer_of_git_lfs_is_called_that(pipeline, suffix):
    (pipeline / WEIGHTS).unlink()
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0a\nsize 7\n"
    (pipeline / WEIGHTS).with_suffix(suffix).write_text(pointer)
    with pytest.raises(UsageError, match="pointer of Git LFS") as caught:
        load(resolve(str(pipeline)))
    assert "git lfs pull" in caught.value.hint
