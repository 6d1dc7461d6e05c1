"""AuraFlowTransformer2DModel: AuraFlow, two-stream blocks followed by single-stream ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from diffcompress.families.base import Config, Stack
from diffcompress.families.mmdit_rules import stream_widths, time_roles
from diffcompress.families.transformer import Transformer, simple_rules
from diffcompress.families.transformer_rules import Role, Rules

STACKS = (
    Stack("num_single_dit_layers", "single_transformer_blocks"),
    Stack("num_mmdit_layers", "joint_transformer_blocks"),
)
# What the pipeline makes and reads unless told otherwise: 1024 pixels, T5's tokens.
SIDE, TEXT_TOKENS = 128, 256


def _size(config: Config) -> tuple[int, int]:
    return config["num_attention_heads"], config["attention_head_dim"]


def _resized(config: Config, heads: int, head_dim: int, depths: Mapping[str, int]) -> dict[str, Any]:
    return {"num_attention_heads": heads, "attention_head_dim": head_dim, "caption_projection_dim": heads * head_dim}


def _ffn(width: int) -> int:
    """Hidden channels of a gated feed-forward layer: the class rounds up."""
    return math.ceil(int(8 * width / 3) / 256) * 256


def _rules(teacher: Config, student: Config) -> Rules:
    sizes = (_size(teacher), _size(student))
    wide, narrow = (heads * size for heads, size in sizes)
    return simple_rules(
        STACKS,
        teacher,
        student,
        sizes,
        ffn=(_ffn(wide), _ffn(narrow)),
        normed=True,
        widths=stream_widths(wide, narrow),
        roles=(
            *time_roles("time_step_proj", r"(norm1|norm1_context|norm_out)\.linear"),
            Role(r"(?P<at>.*ff(_context)?)\.linear_[12]\.weight", ("{at}.ffn", None)),
            Role(r"(?P<at>.*ff(_context)?)\.out_projection\.weight", (None, "{at}.ffn")),
        ),
    )


def _forward(model: nn.Module, noisy: Tensor, timestep: Tensor, conditioning: Mapping[str, Tensor]) -> Tensor:
    return model(noisy, timestep=timestep / 1000, return_dict=False, **conditioning)[0]


def _shape(config: Config) -> tuple[int, ...]:
    """Shape of a sample whose positions all lie in the learned table."""
    side = min(SIDE, math.isqrt(config["pos_embed_max_size"]) * config["patch_size"])
    return (config["in_channels"], side, side)


def _inputs(config: Config, batch: int) -> dict[str, Tensor]:
    return {"encoder_hidden_states": torch.zeros(batch, TEXT_TOKENS, config["joint_attention_dim"])}


def _tiny() -> dict[str, Any]:
    return {
        "sample_size": 8,
        "patch_size": 2,
        "in_channels": 4,
        "out_channels": 4,
        "num_mmdit_layers": 2,
        "num_single_dit_layers": 3,
        "attention_head_dim": 8,
        "num_attention_heads": 4,
        "joint_attention_dim": 12,
        "caption_projection_dim": 32,
        "pos_embed_max_size": 16,
    }


FAMILY = Transformer(
    class_name="AuraFlowTransformer2DModel",
    pipelines=("AuraFlowPipeline",),
    stacks=STACKS,
    size=_size,
    resized=_resized,
    rules=_rules,
    forward=_forward,
    shape=_shape,
    inputs=_inputs,
    tiny=_tiny,
    text=lambda _config: ("encoder_hidden_states",),
    feature_output=1,  # of a two-stream block, where there are no others
)
