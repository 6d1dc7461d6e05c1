"""Lumina2Transformer2DModel: the Next-DiT of Lumina-Image 2.0 (Qin et al. 2025, arXiv 2503.21758)."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from diffcompress.families.base import Config, Stack
from diffcompress.families.transformer import Transformer, mlp_roles, simple_rules
from diffcompress.families.transformer_rules import (
    Role,
    Rules,
    Width,
    nearest_positions,
    rotary_axes,
    rotary_sizes,
    spread,
)

# Image tokens and caption tokens have refiner layers each, in equal number.
REFINERS = Stack("num_refiner_layers", "noise_refiner")
STACKS = (Stack("num_layers", "layers"), REFINERS)
# The time embedding is as wide as the model, up to this.
MOST_TIME_CHANNELS = 1024
# Students round their feed-forward width up to a multiple of this, where their teacher may use a coarser one.
FFN_STEP = 16
# As the pipeline counts: time runs from 0 (noise) to 1.
TRAIN_TIMESTEPS = 1000


def _size(config: Config) -> tuple[int, int]:
    heads = config["num_attention_heads"]
    return heads, config["hidden_size"] // heads


def _queries(config: Config) -> int:
    """How many query heads share one key head."""
    heads, _ = _size(config)
    return max(1, heads // (config["num_kv_heads"] or heads))


def _axes(config: Config) -> list[int]:
    return list(config["axes_dim_rope"])


def _ffn(config: Config) -> int:
    """Hidden channels of the feed-forward layers, as the class rounds them."""
    heads, head_dim = _size(config)
    hidden, step = 4 * heads * head_dim, config["multiple_of"]
    if config["ffn_dim_multiplier"] is not None:
        hidden = int(config["ffn_dim_multiplier"] * hidden)
    return -(-hidden // step) * step


def _resized(config: Config, heads: int, head_dim: int, depths: Mapping[str, int]) -> dict[str, Any]:
    changes: dict[str, Any] = {
        "hidden_size": heads * head_dim,
        "num_attention_heads": heads,
        "num_kv_heads": heads // _queries(config),
        "axes_dim_rope": rotary_axes(_axes(config), head_dim),
    }
    if (heads, head_dim) != _size(config):
        changes["multiple_of"] = min(FFN_STEP, config["multiple_of"])
    return changes


def _rules(teacher: Config, student: Config) -> Rules:
    sizes = (old_heads, old_dim), (new_heads, new_dim) = _size(teacher), _size(student)
    wide, narrow, queries = old_heads * old_dim, new_heads * new_dim, _queries(teacher)
    old_keys, new_keys = old_heads // queries, new_heads // queries
    head = nearest_positions(_axes(teacher), _axes(student), pair=2)
    # Whole groups of query heads, each with the key head that it shares.
    group = tuple(query * old_dim + channel for query in range(queries) for channel in head)
    widths = {
        "heads": Width(wide, narrow, old_keys, new_keys, positions=group),
        "keys": Width(old_keys * old_dim, new_keys * new_dim, old_keys, new_keys, head, follows="{at}.heads"),
        "time": Width(min(wide, MOST_TIME_CHANNELS), min(narrow, MOST_TIME_CHANNELS)),
    }
    widths["hidden"] = widths["time"]
    roles = (
        Role(r"(?P<at>.*attn)\.to_[kv]\.weight", ("{at}.keys", None)),
        Role(r".*norm1\.linear\.weight", (None, "time")),
        Role(r"norm_out\.linear_1\.weight", (None, "time")),
        *mlp_roles("timestep_embedder", out="time"),
    )
    depth = spread(student[REFINERS.key], teacher[REFINERS.key])
    return simple_rules(
        STACKS,
        teacher,
        student,
        sizes,
        ffn=(_ffn(teacher), _ffn(student)),
        head=head,
        normed=True,
        widths=widths,
        roles=roles,
        sources={"context_refiner": depth},
    )


class _WithoutPadding(TorchFunctionMode):
    """The class reads caption lengths from the mask; on the meta device nothing can be read: all are `length`."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length = length

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.tolist:
            return [self.length] * len(args[0])
        return func(*args, **(kwargs or {}))


def _forward(model: nn.Module, noisy: Tensor, timestep: Tensor, conditioning: Mapping[str, Tensor]) -> Tensor:
    text, mask = conditioning["encoder_hidden_states"], conditioning["encoder_attention_mask"]
    reading: AbstractContextManager[Any] = _WithoutPadding(mask.shape[1]) if mask.is_meta else nullcontext()
    with reading:
        return -model(
            hidden_states=noisy,
            timestep=1 - timestep / TRAIN_TIMESTEPS,
            encoder_hidden_states=text,
            encoder_attention_mask=mask,
            return_dict=False,
        )[0]


def _shape(config: Config) -> tuple[int, ...]:
    return (config["in_channels"], config["sample_size"], config["sample_size"])


def _inputs(config: Config, batch: int) -> dict[str, Tensor]:
    text = torch.zeros(batch, 12, config["cap_feat_dim"])
    return {"encoder_hidden_states": text, "encoder_attention_mask": torch.ones(batch, 12, dtype=torch.long)}


def _tiny() -> dict[str, Any]:
    return {
        "hidden_size": 96,
        "num_attention_heads": 8,
        "num_kv_heads": 4,
        "num_layers": 3,
        "num_refiner_layers": 2,
        "multiple_of": 32,
        "in_channels": 2,
        "sample_size": 8,
        "cap_feat_dim": 8,
        "axes_dim_rope": (4, 4, 4),
        "axes_lens": (300, 8, 8),
    }


FAMILY = Transformer(
    class_name="Lumina2Transformer2DModel",
    pipelines=("Lumina2Pipeline",),
    stacks=STACKS,
    size=_size,
    resized=_resized,
    rules=_rules,
    forward=_forward,
    shape=_shape,
    inputs=_inputs,
    tiny=_tiny,
    text=lambda _config: ("encoder_hidden_states", "encoder_attention_mask"),
    heads_step=_queries,
    head_sizes=lambda config: rotary_sizes(_axes(config)),
    rotary=True,
)
