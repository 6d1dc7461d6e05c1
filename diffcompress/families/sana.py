"""SanaTransformer2DModel: linear self attention and convolutions (Xie et al. 2024, arXiv 2410.10629)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from diffcompress.errors import UsageError
from diffcompress.families.base import Config, Stack
from diffcompress.families.transformer import Transformer, mlp_roles, simple_rules
from diffcompress.families.transformer_rules import Role, Rules, Width, nearest_positions

STACKS = (Stack("num_layers", "transformer_blocks"),)
TEXT = ("encoder_hidden_states", "encoder_attention_mask")
EXAMPLE_TOKENS = 4


def _size(config: Config) -> tuple[int, int]:
    return config["num_attention_heads"], config["attention_head_dim"]


def _cross_size(config: Config) -> tuple[int, int]:
    return config["num_cross_attention_heads"], config["cross_attention_head_dim"]


def _check(config: Config) -> None:
    if config["guidance_embeds"]:
        raise UsageError(
            "this Sana takes a guidance scale as an input (guidance_embeds), as few-step Sana Sprint models do, "
            "whose samples are noised in another way",
            "take the Sana model that it was distilled from",
        )


def _resized(config: Config, heads: int, head_dim: int, depths: Mapping[str, int]) -> dict[str, Any]:
    width = heads * head_dim
    cross_heads, cross_size = _cross_resized(config, width)
    return {
        "num_attention_heads": heads,
        "attention_head_dim": head_dim,
        "num_cross_attention_heads": cross_heads,
        "cross_attention_head_dim": cross_size,
        "cross_attention_dim": width,
    }


def _cross_resized(config: Config, width: int) -> tuple[int, int]:
    """Heads of cross attention have a size of their own: each student head is a teacher head or most of one."""
    heads, size = _cross_size(config)
    inner = round(width * heads * size / math.prod(_size(config)))
    sizes = [part for part in range(1, inner + 1) if inner % part == 0]
    parts = [part for part in sizes if part <= size and inner // part <= heads]
    best = max(parts) if parts else min(sizes, key=lambda part: abs(math.log(part / size)))
    return inner // best, best


def _rules(teacher: Config, student: Config) -> Rules:
    wide, narrow = (heads * size for heads, size in (_size(teacher), _size(student)))
    (old_heads, old_size), (new_heads, new_size) = _cross_size(teacher), _cross_size(student)
    ratio = teacher["mlp_ratio"]
    normed = teacher["qk_norm"] is not None
    # Linear attention divides by its own sum, so only cross attention must weigh a smaller head as the whole one.
    factor = 1.0 if normed else math.sqrt(new_size / old_size)
    roles = (
        *mlp_roles("timestep_embedder"),
        *mlp_roles("caption_projection", out="caption"),
        Role(r"caption_norm\.weight", ("caption",)),
        Role(r"(?P<at>.*attn1)\.norm_[qk]\.weight", ("{at}.heads",)),  # over all heads
        Role(r"(?P<at>.*attn2)\.norm_[qk]\.weight", ("{at}.cross",)),
        Role(r"(?P<at>.*attn2)\.to_q\.weight", ("{at}.cross", None), factor),
        Role(r"(?P<at>.*attn2)\.to_q\.bias", ("{at}.cross",), factor),
        Role(r"(?P<at>.*attn2)\.to_[kv]\.(weight|bias)", ("{at}.cross", "caption")),
        Role(r"(?P<at>.*attn2)\.to_out\.0\.weight", (None, "{at}.cross")),
        Role(r"(?P<at>.*\.ff)\.conv_(inverted|depth)\.(weight|bias)", ("{at}.ffn",)),  # value and gate
        Role(r"(?P<at>.*\.ff)\.conv_point\.weight", (None, "{at}.ffn")),
    )
    widths = {
        "caption": Width(wide, narrow),
        "cross": Width(old_heads * old_size, new_heads * new_size, old_heads, new_heads),
    }
    positioned = teacher["interpolation_scale"] is not None
    return simple_rules(
        STACKS,
        teacher,
        student,
        (_size(teacher), _size(student)),
        ffn=(int(ratio * wide), int(ratio * narrow)),
        # Where there is a position embedding, it is built anew: sine and cosine of rows and of columns.
        residual=nearest_positions([wide // 4] * 4, [narrow // 4] * 4) if positioned else None,
        normed=True,
        widths=widths,
        roles=roles,
    )


def _forward(model: nn.Module, noisy: Tensor, timestep: Tensor, conditioning: Mapping[str, Tensor]) -> Tensor:
    config: Config = getattr(model, "config")  # noqa: B009
    time = timestep * config["timestep_scale"]
    text = {name: conditioning[name] for name in TEXT}
    return model(noisy, timestep=time, return_dict=False, **text)[0]


def _shape(config: Config) -> tuple[int, ...]:
    return (config["in_channels"], config["sample_size"], config["sample_size"])


def _inputs(config: Config, batch: int) -> dict[str, Tensor]:
    return {
        "encoder_hidden_states": torch.zeros(batch, EXAMPLE_TOKENS, config["caption_channels"]),
        "encoder_attention_mask": torch.ones(batch, EXAMPLE_TOKENS, dtype=torch.long),
    }


def _tiny() -> dict[str, Any]:
    return {
        "num_attention_heads": 6,
        "attention_head_dim": 8,
        "num_cross_attention_heads": 4,
        "cross_attention_head_dim": 12,
        "cross_attention_dim": 48,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 3,
        "sample_size": 8,
        "patch_size": 1,
        "caption_channels": 8,
    }


FAMILY = Transformer(
    class_name="SanaTransformer2DModel",
    pipelines=("SanaPipeline",),
    stacks=STACKS,
    size=_size,
    resized=_resized,
    rules=_rules,
    forward=_forward,
    shape=_shape,
    inputs=_inputs,
    tiny=_tiny,
    text=lambda _config: TEXT,
    channels=lambda config: 1 if config["interpolation_scale"] is None else 4,
    check=_check,
)
