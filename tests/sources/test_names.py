"""Weights from under what wrapped them, and what is named where it is no plain model: in `plan` already."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffcompress.errors import UsageError
from diffcompress.pipeline.load import check_teacher, load
from diffcompress.sources.resolve import resolve

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
LORA = {"mid_block.attentions.0.to_q.lora_A.default.weight": torch.zeros(2, 32)}


def _base(name):
    return name.replace("to_q.", "to_q.base_layer.")


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda name: f"module.{name}",
        lambda name: f"_orig_mod.{name}",
        lambda name: f"module._orig_mod.module.{name}",
        lambda name: f"_forward_module.model.{name}",
        lambda name: f"unet._fsdp_wrapped_module.{name}",
        lambda name: name.replace("mid_block.", "mid_block._orig_mod."),
        _base,
    ],
    ids=["parallel", "compiled", "both", "DeepSpeed", "FSDP", "a compiled block", "an unloaded LoRA"],
)
def test_what_wraps_a_model_is_taken_off(pipeline, wrapped):
    state = load_file(pipeline / WEIGHTS)
    (pipeline / WEIGHTS).unlink()
    save_file({wrapped(name): value for name, value in state.items()}, pipeline / WEIGHTS)
    assert check_teacher(resolve(str(pipeline))) == "float32"
    loaded = load(resolve(str(pipeline))).denoiser.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in state.items())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: {_base(name): value for name, value in s.items()} | LORA, "LoRA layers beside the weights"),
        (lambda s: LORA, r"is a LoRA \(mid_block"),
        (
            lambda s: s | {"mid_block.attentions.0.processor.to_q_lora.up.weight": torch.zeros(2, 2)},
            "LoRA layers beside",
        ),
        (lambda s: s | {"mid_block.attentions.0.to_q.smooth_factor": torch.zeros(4)}, r"is quantised \(mid_block"),
        (lambda s: s | {"mid_block.attentions.0.to_q.weight.absmax": torch.zeros(4)}, "by bitsandbytes"),
        (lambda s: s | {"mid_block.attentions.0.to_q.qweight": torch.zeros(4)}, r"is quantised \(mid_block"),
        (
            lambda s: {name: value.to(torch.float8_e4m3fn) for name, value in s.items()},
            "no floating-point tensors",
        ),
        (lambda s: {name: value for name, value in s.items() if "mid" not in name}, "missing tensor"),
        (lambda s: s | {"conv_in.bias": torch.zeros(3)}, r"conv_in.bias has shape \[3\]"),
    ],
    ids=["fused", "lora", "processor", "svd", "nf4", "gptq", "fp8", "pruned", "shape"],
)
def test_what_is_no_plain_model_is_named_from_its_header(pipeline, change, said):
    state = change(load_file(pipeline / WEIGHTS))
    (pipeline / WEIGHTS).unlink()
    save_file(state, pipeline / WEIGHTS)
    for refuse in (check_teacher, load):
        with pytest.raises(UsageError, match=said) as caught:
            refuse(resolve(str(pipeline)))
        assert caught.value.hint


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("diffusion_flax_model.msgpack", "which is Flax"),
        ("model.onnx", "which is ONNX"),
        ("unet-Q4_K_M.gguf", "which is GGUF"),
        ("my-unet.safetensors", "but my-unet.safetensors"),
    ],
)
def test_weights_in_another_format_are_named(pipeline, name, said):
    (pipeline / WEIGHTS).rename(pipeline / "unet" / name)
    with pytest.raises(UsageError, match="holds no weights") as caught:
        check_teacher(resolve(str(pipeline)))
    assert said in caught.value.message
