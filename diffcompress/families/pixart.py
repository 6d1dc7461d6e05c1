"""PixArtTransformer2DModel: PixArt-alpha (Chen et al. 2023, arXiv 2310.00426) and -sigma (2024, arXiv 2403.04692)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from diffcompress.families.base import Config, Stack
from diffcompress.families.transformer import Transformer, mlp_roles, simple_rules
from diffcompress.families.transformer_rules import Role, Rules, Width, nearest_positions

STACKS = (Stack("num_layers", "transformer_blocks"),)
TEXT = ("encoder_hidden_states", "encoder_attention_mask")
# What PixArt-alpha at 1024 pixels is told besides the prompt, and the channels of each.
SIZES = {"added_cond_kwargs.resolution": 2, "added_cond_kwargs.aspect_ratio": 1}
EXAMPLE_TOKENS = 4


def _size(config: Config) -> tuple[int, int]:
    return config["num_attention_heads"], config["attention_head_dim"]


def _told_sizes(config: Config) -> bool:
    told = config["use_additional_conditions"]
    return config["sample_size"] == 128 if told is None else told


def _projects_captions(config: Config) -> bool:
    return config["caption_channels"] is not None


def _resized(config: Config, heads: int, head_dim: int, depths: Mapping[str, int]) -> dict[str, Any]:
    changes = {"num_attention_heads": heads, "attention_head_dim": head_dim}
    if _projects_captions(config):  # else cross attention reads the text encoder's own channels
        changes["cross_attention_dim"] = heads * head_dim
    return changes


def _rules(teacher: Config, student: Config) -> Rules:
    wide, narrow = (heads * size for heads, size in (_size(teacher), _size(student)))
    # The position embedding is built anew from the student's width: sine and cosine of rows and of columns.
    residual = nearest_positions([wide // 4] * 4, [narrow // 4] * 4)
    roles = (
        *mlp_roles("timestep_embedder"),
        *mlp_roles("caption_projection", out="caption"),
        Role(r"(?P<at>.*attn2)\.to_[kv]\.weight", ("{at}.heads", "caption")),
    )
    widths = {"caption": Width(wide, narrow)}
    if _told_sizes(teacher):
        # Height, width and aspect ratio are added to a third of the time embedding each: `residual` is the same in
        # every third.
        widths["third"] = Width(wide // 3, narrow // 3, positions=residual[: narrow // 3])
        widths["hidden_third"] = Width(wide // 3, narrow // 3)
        roles += mlp_roles("(resolution|aspect_ratio)_embedder", hidden="hidden_third", out="third")
    sizes = (_size(teacher), _size(student))
    return simple_rules(STACKS, teacher, student, sizes, residual=residual, roles=roles, widths=widths)


def _forward(model: nn.Module, noisy: Tensor, timestep: Tensor, conditioning: Mapping[str, Tensor]) -> Tensor:
    sizes = {name.rpartition(".")[2]: conditioning.get(name) for name in SIZES}
    text = {name: conditioning[name] for name in TEXT}
    return model(noisy, timestep=timestep, added_cond_kwargs=sizes, return_dict=False, **text)[0]


def _shape(config: Config) -> tuple[int, ...]:
    return (config["in_channels"], config["sample_size"], config["sample_size"])


def _text(config: Config) -> tuple[str, ...]:
    return (*TEXT, *SIZES) if _told_sizes(config) else TEXT


def _inputs(config: Config, batch: int) -> dict[str, Tensor]:
    channels = config["caption_channels"] if _projects_captions(config) else config["cross_attention_dim"]
    sizes = {name: torch.ones(batch, size) for name, size in SIZES.items()} if _told_sizes(config) else {}
    return {
        "encoder_hidden_states": torch.zeros(batch, EXAMPLE_TOKENS, channels),
        "encoder_attention_mask": torch.ones(batch, EXAMPLE_TOKENS, dtype=torch.long),
        **sizes,
    }


def _tiny() -> dict[str, Any]:
    return {
        "num_attention_heads": 4,
        "attention_head_dim": 12,
        "in_channels": 4,
        "out_channels": 8,
        "num_layers": 3,
        "cross_attention_dim": 48,
        "sample_size": 8,
        "patch_size": 2,
        "caption_channels": 8,
        "use_additional_conditions": True,
    }


FAMILY = Transformer(
    class_name="PixArtTransformer2DModel",
    pipelines=("PixArtAlphaPipeline", "PixArtSigmaPipeline"),
    former="ada_norm_single",
    stacks=STACKS,
    size=_size,
    resized=_resized,
    rules=_rules,
    forward=_forward,
    shape=_shape,
    inputs=_inputs,
    tiny=_tiny,
    text=_text,
    channels=lambda config: 12 if _told_sizes(config) else 4,
    recipe="dit-text",
)
