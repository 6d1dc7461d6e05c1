"""SD3Transformer2DModel: the MMDiT of Esser et al. (2024, arXiv 2403.03206), and Stable Diffusion 3.5's MMDiT-X."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from diffcompress.families.base import Config, Stack
from diffcompress.families.mmdit_rules import stream_widths, text_roles, time_roles
from diffcompress.families.transformer import Transformer, simple_rules
from diffcompress.families.transformer_rules import Rules, nearest_positions, spread

STACKS = (Stack("num_layers", "transformer_blocks", marked="dual_attention_layers"),)
# What the pipeline gives its denoiser unless told otherwise: CLIP's tokens, then T5's.
TEXT_TOKENS = 77 + 256


def _size(config: Config) -> tuple[int, int]:
    return config["num_attention_heads"], config["attention_head_dim"]


def _resized(config: Config, heads: int, head_dim: int, depths: Mapping[str, int]) -> dict[str, Any]:
    """Blocks with a second attention are those that start from such a block."""
    changes: dict[str, Any] = {"num_attention_heads": heads, "attention_head_dim": head_dim}
    changes["caption_projection_dim"] = heads * head_dim
    dual = config["dual_attention_layers"]
    if dual:
        order = _order(depths["num_layers"], config["num_layers"])
        changes["dual_attention_layers"] = [block for block, source in enumerate(order) if source in dual]
    return changes


def _order(student: int, teacher: int) -> list[int]:
    """The last block has no text output, so that it must start from the last one."""
    return spread(student, teacher) if student > 1 else [teacher - 1]


def _rules(teacher: Config, student: Config) -> Rules:
    sizes = (_size(teacher), _size(student))
    (old_heads, old_dim), (new_heads, new_dim) = sizes
    normed = teacher["qk_norm"] is not None
    roles = (
        *text_roles(
            "context_embedder",
            r"norm1_context\.linear",
            # Text queries must weigh what image queries do, see `simple_rules`.
            query_scale=1.0 if normed else math.sqrt(new_dim / old_dim),
        ),
        *time_roles(r"(timestep|text)_embedder", r"(norm1|norm_out)\.linear"),
    )
    return simple_rules(
        STACKS,
        teacher,
        student,
        sizes,
        normed=normed,
        # One vector scales the queries of all heads.
        head=nearest_positions([old_dim], [new_dim]) if normed else None,
        widths=stream_widths(old_heads * old_dim, new_heads * new_dim),
        roles=roles,
        sources={"transformer_blocks": _order(student["num_layers"], teacher["num_layers"])},
    )


def _forward(model: nn.Module, noisy: Tensor, timestep: Tensor, conditioning: Mapping[str, Tensor]) -> Tensor:
    return model(noisy, timestep=timestep, return_dict=False, **conditioning)[0]


def _shape(config: Config) -> tuple[int, ...]:
    return (config["in_channels"], config["sample_size"], config["sample_size"])


def _inputs(config: Config, batch: int) -> dict[str, Tensor]:
    return {
        "encoder_hidden_states": torch.zeros(batch, TEXT_TOKENS, config["joint_attention_dim"]),
        "pooled_projections": torch.zeros(batch, config["pooled_projection_dim"]),
    }


def _tiny() -> dict[str, Any]:
    return {
        "sample_size": 8,
        "patch_size": 2,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 4,
        "num_attention_heads": 4,
        "attention_head_dim": 8,
        "joint_attention_dim": 12,
        "caption_projection_dim": 32,
        "pooled_projection_dim": 10,
        "pos_embed_max_size": 8,
        "dual_attention_layers": [0, 1],
        "qk_norm": "rms_norm",
    }


FAMILY = Transformer(
    class_name="SD3Transformer2DModel",
    pipelines=("StableDiffusion3Pipeline",),
    optional_encoders=("text_encoder_3",),  # zeros stand for its tokens (_get_t5_prompt_embeds)
    stacks=STACKS,
    size=_size,
    resized=_resized,
    rules=_rules,
    forward=_forward,
    shape=_shape,
    inputs=_inputs,
    tiny=_tiny,
    text=lambda _config: ("encoder_hidden_states", "pooled_projections"),
    channels=lambda _config: 4,
    rotary=True,  # a vector that scales the queries of all heads fixes their channels too
    feature_output=1,
)
