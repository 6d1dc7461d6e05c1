"""Checkpoints in one file: recognised by their headers, converted to exactly what diffusers has."""

from __future__ import annotations

import json
import struct
from typing import cast

import diffusers
import pytest
import torch
from safetensors.torch import save_file

from diffcompress.errors import UsageError
from diffcompress.pipeline.load import check_teacher
from diffcompress.sources import originals as layouts
from diffcompress.sources import single_file
from diffcompress.sources.resolve import resolve
from diffcompress.sources.state import StoredState
from diffcompress.sources.weights import check_state, open_state
from tests import tiny
from tests.sources import originals

KNOWN = layouts.published()
UNET = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 8,
    "block_out_channels": [16, 32],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "layers_per_block": 1,
    "cross_attention_dim": 8,
    "attention_head_dim": 2,
    "norm_num_groups": 4,
}
SD3 = {
    "_class_name": "SD3Transformer2DModel",
    "sample_size": 8,
    "num_layers": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "caption_projection_dim": 16,
    "joint_attention_dim": 8,
    "pooled_projection_dim": 8,
    "pos_embed_max_size": 8,
    "qk_norm": "rms_norm",
    "dual_attention_layers": [0],
}


def _build(config, device="cpu"):
    cls = getattr(diffusers, config["_class_name"])
    with torch.device(device):
        return cls.from_config({k: v for k, v in config.items() if not k.startswith("_")}).eval()


def _original(config, state):
    if "layers_per_block" in config:
        return originals.unet(state, config["layers_per_block"])
    return originals.flux(state) if "guidance_embeds" in config else originals.sd3(state)


def _hollow(file, shapes):
    """A safetensors file in half precision whose tensors are a hole: real sizes at no cost."""
    header, start = {}, 0
    for name, shape in shapes.items():
        end = start + 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header).encode()
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        stream.truncate(8 + len(text) + start)


@pytest.mark.parametrize("kind", KNOWN)
def test_published_checkpoints_are_recognised_without_reading_them(tmp_path, kind):
    config, scheduler = KNOWN[kind]["config"], KNOWN[kind]["scheduler"]
    model = _build(config, "meta")
    named = _original(config, model.state_dict())
    file = tmp_path / "model.safetensors"
    _hollow(file, {name: tuple(value.shape) for name, value in named.items()} | {"first_stage_model.x": (1,)})
    if scheduler is None:
        with pytest.raises(UsageError, match="prediction type is unknown"):
            resolve(str(file))
        (tmp_path / "scheduler.json").write_text('{"_class_name": "DDIMScheduler"}')
        found = resolve(str(file), str(tmp_path / "scheduler.json"))
    else:
        found = resolve(str(file))
        assert found.scheduler == scheduler
    assert (found.config, found.name, found.pipeline) == (config, "model", None)
    assert any(KNOWN[kind]["name"] in note for note in found.notes)
    around = found.surroundings
    assert list(around.held) == ["vae"]
    assert set(around.others) >= {"text_encoder", "tokenizer"}
    assert any(f"'{KNOWN[kind]['repository']}' on the Hub" in note for note in found.notes)
    assert check_teacher(found) == "float16"
    # What the converter makes of such names and shapes is exactly the model of the config.
    stored = {name: value.half() for name, value in named.items()}
    converted = single_file.convert(cast(StoredState, _Meta(stored)), config)
    assert {n: v.shape for n, v in converted.items()} == {n: v.shape for n, v in model.state_dict().items()}


def test_the_marks_of_fine_tuned_checkpoints(tmp_path):
    """Empty tensors say what the weights cannot: v-prediction, zero terminal SNR, EDM."""
    named = _original(KNOWN["xl_base"]["config"], _build(KNOWN["xl_base"]["config"], "meta").state_dict())
    shapes = {name: tuple(value.shape) for name, value in named.items()}
    file = tmp_path / "model.safetensors"
    _hollow(file, shapes)
    assert any("taken to be that model's (epsilon)" in note for note in resolve(str(file)).notes)
    _hollow(file, shapes | {"v_pred": (0,), "ztsnr": (0,)})
    found = resolve(str(file))
    assert (found.scheduler["prediction_type"], found.scheduler["rescale_betas_zero_snr"]) == ("v_prediction", True)
    _hollow(file, shapes | {"edm_vpred.sigma_max": (0,), "edm_vpred.sigma_min": (0,)})
    with pytest.raises(UsageError, match="marked as EDM"):
        resolve(str(file))


class _Meta(dict):
    files = ("model.safetensors",)


@pytest.mark.parametrize("config", [UNET, SD3], ids=["unet", "sd3"])
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_an_original_checkpoint_becomes_the_model_of_diffusers(tmp_path, config, suffix):
    torch.manual_seed(0)
    model = _build(config)
    expected = model.state_dict()
    checkpoint = {n: v.clone().contiguous() for n, v in _original(config, expected).items()}
    file = tmp_path / f"model{suffix}"
    save_file(checkpoint, file) if suffix == ".safetensors" else torch.save(checkpoint, file)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "scheduler.json").write_text('{"_class_name": "DDIMScheduler"}')
    found = resolve(str(file), str(tmp_path / "scheduler.json"))
    assert any("pickled" in note for note in found.notes) == (suffix == ".ckpt")
    state = open_state(found)
    check_state(state, model)
    assert set(state) == set(expected)
    assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_a_file_that_save_pretrained_made(tmp_path):
    pipeline = tiny.save_pipeline(tmp_path / "ddpm")
    found = resolve(str(pipeline / "unet" / "diffusion_pytorch_model.safetensors"))
    assert found.scheduler["_class_name"] == "DDPMScheduler"
    assert found.pipeline is None
    model = tiny.unet()
    state = open_state(found)
    check_state(state, model)
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


def test_files_that_tell_nothing(tmp_path):
    save_file({"some.weight": torch.zeros(2)}, tmp_path / "lora.safetensors")
    inpainting = {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(320, 9, 3, 3)}
    save_file(inpainting, tmp_path / "inpainting.safetensors")
    torch.save([torch.zeros(1)], tmp_path / "list.ckpt")
    (tmp_path / "damaged.safetensors").write_bytes(b"not a tensor file at all")
    (tmp_path / "config.json.txt").write_text("{}")
    for name, said in {
        "lora.safetensors": "not recognised",
        "inpainting.safetensors": r"not recognised .*\(inpainting\)",
        "list.ckpt": "is a pickle",
        "damaged.safetensors": "cannot be read as safetensors",
        "config.json.txt": "holds no model",
    }.items():
        with pytest.raises(UsageError, match=said) as caught:
            resolve(str(tmp_path / name))
        assert caught.value.hint


def test_half_a_checkpoint_is_refused(tmp_path):
    checkpoint = {n: v.contiguous() for n, v in _original(SD3, _build(SD3).state_dict()).items()}
    del checkpoint["model.diffusion_model.final_layer.linear.weight"]
    save_file(checkpoint, tmp_path / "model.safetensors")
    with pytest.raises(UsageError, match="does not convert"):
        single_file.convert(StoredState([tmp_path / "model.safetensors"]), SD3)


def test_a_checkpoint_of_more_or_less_than_the_model_is_refused_from_its_header(tmp_path):
    """A merged LCM has a tensor that the converter drops: without it the model is another function."""
    config, prefix = KNOWN["v1"]["config"], "model.diffusion_model."
    shapes = {n: tuple(v.shape) for n, v in _original(config, _build(config, "meta").state_dict()).items()}
    pruned = {name: shape for name, shape in shapes.items() if "middle_block" not in name}
    for changed, said in (
        (shapes | {f"{prefix}time_embed.cond_proj.weight": (320, 256)}, r"1 tensor\(s\) .* first .*cond_proj.weight"),
        (shapes | {f"{prefix}label_emb.0.0.weight": (1280, 2816)}, "first .*label_emb.0.0.weight"),
        (pruned, "missing tensor"),
    ):
        _hollow(tmp_path / "model.safetensors", changed)
        with pytest.raises(UsageError, match=said):
            check_teacher(resolve(str(tmp_path / "model.safetensors")))
