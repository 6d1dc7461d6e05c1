"""WanTransformer3DModel: the text-to-video transformer of Wan 2.1 and 2.2 (2025, arXiv 2503.20314)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from diffcompress.errors import UsageError
from diffcompress.families.base import Config, Stack
from diffcompress.families.transformer import Transformer, mlp_roles, simple_rules
from diffcompress.families.transformer_rules import Role, Rules, Width, nearest_positions

STACKS = (Stack("num_layers", "blocks"),)
# The pipeline pads every prompt to this many tokens.
TEXT_TOKENS = 512
FFN_STEP = 16
# Frames, rows and columns of what the pipeline makes by default: 81 frames of 480 x 832 pixels.
LATENT_SIZE = (21, 60, 104)


def _size(config: Config) -> tuple[int, int]:
    return config["num_attention_heads"], config["attention_head_dim"]


def _ffn(config: Config) -> int:
    return config["ffn_dim"]


def _axes(head_dim: int) -> tuple[int, int, int]:
    """Channels of a head that turn with frame, row and column, as the class splits them."""
    side = 2 * (head_dim // 6)
    return head_dim - 2 * side, side, side


def _head_sizes(config: Config) -> list[int]:
    """Smaller head sizes, descending, of which no axis of the rotary embedding gets more channels."""
    wide = _axes(_size(config)[1])
    sizes = range(sum(wide) - 2, 4, -2)
    return [size for size in sizes if all(new <= old for new, old in zip(_axes(size), wide, strict=True))]


def _resized(config: Config, heads: int, head_dim: int, depths: Mapping[str, int]) -> dict[str, Any]:
    old_heads, old_dim = _size(config)
    share = heads * head_dim / (old_heads * old_dim)
    ffn = min(_ffn(config), max(FFN_STEP, round(_ffn(config) * share / FFN_STEP) * FFN_STEP))
    return {"num_attention_heads": heads, "attention_head_dim": head_dim, "ffn_dim": ffn}


def _rules(teacher: Config, student: Config) -> Rules:
    sizes = (old_heads, old_dim), (new_heads, new_dim) = _size(teacher), _size(student)
    wide, narrow = old_heads * old_dim, new_heads * new_dim
    attention = r"(?P<at>blocks\.\d+\.attn2)\."
    roles = (
        # One vector normalises all heads at once.
        Role(r"(?P<at>blocks\.\d+\.attn1)\.norm_[qk]\.weight", ("{at}.heads",)),
        # Cross-attention does not turn by position: any channels of a head.
        Role(attention + r"(to_[qkv]|norm_[qk])\.(weight|bias)", ("{at}.cross", None)),
        Role(attention + r"to_out\.0\.weight", (None, "{at}.cross")),
        *mlp_roles(r"condition_embedder\.(time|text)_embedder"),
    )
    widths = {"cross": Width(wide, narrow, old_heads, new_heads)}
    head = nearest_positions(_axes(old_dim), _axes(new_dim), pair=2)
    ffn = (_ffn(teacher), _ffn(student))
    return simple_rules(STACKS, teacher, student, sizes, ffn=ffn, head=head, normed=True, widths=widths, roles=roles)


def _forward(model: nn.Module, noisy: Tensor, timestep: Tensor, conditioning: Mapping[str, Tensor]) -> Tensor:
    text = conditioning["encoder_hidden_states"]
    return model(noisy, timestep=timestep, encoder_hidden_states=text, return_dict=False)[0]


def _shape(config: Config) -> tuple[int, ...]:
    """The pipeline's default, or as many frames, rows and columns as the rotary embedding has."""
    most, patch = config["rope_max_seq_len"], config["patch_size"]
    sizes = (min(size, most * part) for size, part in zip(LATENT_SIZE, patch, strict=True))
    return (config["in_channels"], *sizes)


def _inputs(config: Config, batch: int) -> dict[str, Tensor]:
    return {"encoder_hidden_states": torch.zeros(batch, TEXT_TOKENS, config["text_dim"])}


def _check(config: Config) -> None:
    for key in ("image_dim", "added_kv_proj_dim"):
        if config.get(key) is not None:
            raise UsageError(
                f"a WanTransformer3DModel with {key} {config[key]} also takes an image, which is not supported",
                "text-to-video teachers can be shrunk",
            )
    given, made = config["in_channels"], config["out_channels"] or config["in_channels"]
    if given != made:
        raise UsageError(
            f"a WanTransformer3DModel that takes {given} channels for the {made} it makes also takes an image or a "
            "video, which is not supported",
            "text-to-video teachers can be shrunk",
        )


def _tiny() -> dict[str, Any]:
    return {
        "num_attention_heads": 4,
        "attention_head_dim": 12,
        "ffn_dim": 96,
        "num_layers": 3,
        "in_channels": 2,
        "out_channels": 2,
        "text_dim": 8,
        "freq_dim": 16,
        "rope_max_seq_len": 5,
    }


FAMILY = Transformer(
    class_name="WanTransformer3DModel",
    pipelines=("WanPipeline",),
    stacks=STACKS,
    size=_size,
    resized=_resized,
    rules=_rules,
    forward=_forward,
    shape=_shape,
    inputs=_inputs,
    tiny=_tiny,
    text=lambda _config: ("encoder_hidden_states",),
    head_sizes=_head_sizes,
    rotary=True,
    check=_check,
    patch=lambda config: int(config["patch_size"][-1]),
)
