"""QwenImageTransformer2DModel: Qwen-Image (Wu et al. 2025, arXiv 2508.02324)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from diffcompress.errors import UsageError
from diffcompress.families.base import Config, Stack
from diffcompress.families.mmdit_rules import pack, stream_widths, text_roles, time_roles, unpack, unrounded
from diffcompress.families.transformer import Transformer, simple_rules
from diffcompress.families.transformer_rules import Role, Rules, nearest_positions, rotary_axes, rotary_sizes

STACKS = (Stack("num_layers", "transformer_blocks"),)
# What the pipeline makes unless told otherwise: 1024 pixels.
SIDE = 128
# Prompts are as long as their words; this many tokens stand for them.
TEXT_TOKENS = 64
# Of Qwen-Image-Edit, Qwen-Image-Layered and others that are given images.
UNSUPPORTED = ("guidance_embeds", "zero_cond_t", "use_additional_t_cond", "use_layer3d_rope")


def _size(config: Config) -> tuple[int, int]:
    return config["num_attention_heads"], config["attention_head_dim"]


def _axes(config: Config) -> list[int]:
    return list(config["axes_dims_rope"] or (16, 56, 56))


def _resized(config: Config, heads: int, head_dim: int, depths: Mapping[str, int]) -> dict[str, Any]:
    axes = rotary_axes(_axes(config), head_dim)
    return {"num_attention_heads": heads, "attention_head_dim": head_dim, "axes_dims_rope": axes}


def _rules(teacher: Config, student: Config) -> Rules:
    sizes = (_size(teacher), _size(student))
    wide, narrow = (heads * size for heads, size in sizes)
    return simple_rules(
        STACKS,
        teacher,
        student,
        sizes,
        head=nearest_positions(_axes(teacher), _axes(student), pair=2),
        normed=True,
        widths=stream_widths(wide, narrow),
        roles=(
            *text_roles("txt_in", r"txt_mod\.1", ffn="txt_mlp"),
            *time_roles("timestep_embedder", r"(img_mod\.1|norm_out\.linear)"),
            Role(r"(?P<at>.*_mlp)\.net\.0\.proj\.weight", ("{at}.ffn", None)),
            Role(r"(?P<at>.*_mlp)\.net\.0\.proj\.bias", ("{at}.ffn",)),
            Role(r"(?P<at>.*_mlp)\.net\.2\.weight", (None, "{at}.ffn")),
        ),
    )


def _forward(model: nn.Module, noisy: Tensor, timestep: Tensor, conditioning: Mapping[str, Tensor]) -> Tensor:
    batch, _, height, width = noisy.shape
    with unrounded(model.get_submodule("img_in")):
        tokens = model(
            pack(noisy),
            timestep=timestep / 1000,
            img_shapes=[[(1, height // 2, width // 2)]] * batch,
            return_dict=False,
            **conditioning,
        )[0]
    return unpack(tokens, height, width)


def _check(config: Config) -> None:
    for key in UNSUPPORTED:
        if config.get(key):
            raise UsageError(
                f"QwenImageTransformer2DModel with {key} is not supported: it reads more than noise and a prompt",
                "take a text-to-image teacher, such as Qwen-Image",
            )


def _shape(config: Config) -> tuple[int, ...]:
    return (config["in_channels"] // 4, SIDE, SIDE)


def _inputs(config: Config, batch: int) -> dict[str, Tensor]:
    return {
        "encoder_hidden_states": torch.zeros(batch, TEXT_TOKENS, config["joint_attention_dim"]),
        "encoder_hidden_states_mask": torch.ones(batch, TEXT_TOKENS, dtype=torch.long),
    }


def _tiny() -> dict[str, Any]:
    return {
        "patch_size": 2,
        "in_channels": 16,
        "out_channels": 4,
        "num_layers": 3,
        "attention_head_dim": 16,
        "num_attention_heads": 3,
        "joint_attention_dim": 12,
        "axes_dims_rope": [4, 4, 8],
    }


FAMILY = Transformer(
    class_name="QwenImageTransformer2DModel",
    pipelines=("QwenImagePipeline",),
    stacks=STACKS,
    size=_size,
    resized=_resized,
    rules=_rules,
    forward=_forward,
    shape=_shape,
    inputs=_inputs,
    tiny=_tiny,
    text=lambda _config: ("encoder_hidden_states", "encoder_hidden_states_mask"),
    head_sizes=lambda config: rotary_sizes(_axes(config)),
    rotary=True,
    check=_check,
    feature_output=1,
    # Guidance takes a negative prompt, however empty.
    call_options={"true_cfg_scale": 4.0, "negative_prompt": " "},
)
