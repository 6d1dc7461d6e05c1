"""UNet2DConditionModel: the text-conditioned latent U-Nets of Stable Diffusion 1.x, 2.x and XL."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from diffcompress.errors import UsageError
from diffcompress.families.base import Config, Knob, TensorRules, Variant, complete, plain_config
from diffcompress.families.unet import UNet, group_options, knobs, shares, shrunk
from diffcompress.families.unet2d_condition_rules import MID, heads, mid_attends, tensor_rules, transformer_layers
from diffcompress.families.unet_rules import attention_levels, depths, spread

BLOCK_TYPES = frozenset({"DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"})
# Config keys that must be one of these (the first is diffusers' default): others add tensors or inputs.
ONLY: Mapping[str, tuple[Any, ...]] = {
    "mid_block_type": (MID, "UNetMidBlock2D", None),
    "addition_embed_type": (None, "text_time"),
    "class_embed_type": (None,),
    "num_class_embeds": (None,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "time_cond_proj_dim": (None,),
    "time_embedding_type": ("positional",),
    "attention_type": ("default",),
    "dual_cross_attention": (False,),
    "class_embeddings_concat": (False,),
    "cross_attention_norm": (None,),
    "mid_block_only_cross_attention": (None, False),
}
# Tokens of a prompt that CLIP text encoders give; any number will do.
TOKENS = 77
# What SDXL pipelines embed as numbers: original size, crop corner, target size.
TIME_IDS = 6


class UNet2DCondition(UNet):
    """The number of attention heads is in the config, level by level: sizes stay near the teacher's, and heads go."""

    class_name = "UNet2DConditionModel"
    recipe = "latent-unet"
    pipelines = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")

    def variants(self, config: Config, *, channels_per_group: int) -> tuple[Variant, ...]:
        """One variant for each number of norm groups that a student may have; heads follow from the widths."""
        _check(config)
        found = []
        for groups, cost in group_options(config, channels_per_group):
            allowed = knobs(config, groups, {}, channels_per_group, _transformer_knobs(config))
            if allowed is not None:
                found.append(Variant({"groups": groups}, allowed, cost))
        return tuple(found)

    def shrunk_config(self, config: Config, choice: Mapping[str, int]) -> dict[str, Any]:
        changes = shrunk(config, choice)
        sizes = _head_sizes(config)
        changes["attention_head_dim"] = [
            width // head_size(width, sizes[level]) if level in sizes else 1
            for level, width in enumerate(changes["block_out_channels"])
        ]
        return plain_config(self.class_name, config, **changes, **_transformers(config, changes, choice))

    def tensor_rules(self, teacher: Config, student: Config) -> TensorRules:
        return tensor_rules(teacher, student)

    def predict(self, model: nn.Module, noisy: Tensor, timestep: Tensor, conditioning: Mapping[str, Tensor]) -> Tensor:
        named = {name: value for name, value in conditioning.items() if "." not in name}
        added = {name.partition(".")[2]: value for name, value in conditioning.items() if "." in name}
        return model(noisy, timestep, **named, added_cond_kwargs=added or None, return_dict=False)[0]

    def sample_shape(self, config: Config) -> tuple[int, ...]:
        size = config["sample_size"] or (128 if _sizes_are_embedded(config) else 64)
        height, width = (size, size) if isinstance(size, int) else size
        return (config["in_channels"], height, width)

    def text_conditioning(self, config: Config) -> tuple[str, ...]:
        added = ("added_cond_kwargs.text_embeds", "added_cond_kwargs.time_ids")
        return ("encoder_hidden_states", *(added if _sizes_are_embedded(config) else ()))

    def tiny_config(self) -> dict[str, Any]:
        return complete(
            self.class_name,
            {
                "_class_name": self.class_name,
                "sample_size": 8,
                "in_channels": 2,
                "out_channels": 2,
                "block_out_channels": [16, 32],
                "layers_per_block": 1,
                "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
                "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
                "attention_head_dim": [2, 4],
                "transformer_layers_per_block": [1, 3],
                "cross_attention_dim": 12,
                "norm_num_groups": 4,
                "use_linear_projection": True,
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 4,
                "projection_class_embeddings_input_dim": 4 * TIME_IDS + 10,
            },
        )

    def example_inputs(self, config: Config, batch: int = 1) -> dict[str, Tensor]:
        text = config["cross_attention_dim"]
        inputs = {
            "noisy": torch.zeros(batch, *self.sample_shape(config)),
            "timestep": torch.zeros(batch, dtype=torch.long),
            "encoder_hidden_states": torch.zeros(batch, TOKENS, text if isinstance(text, int) else text[0]),
        }
        if _sizes_are_embedded(config):
            pooled = config["projection_class_embeddings_input_dim"] - TIME_IDS * config["addition_time_embed_dim"]
            inputs["added_cond_kwargs.text_embeds"] = torch.zeros(batch, pooled)
            inputs["added_cond_kwargs.time_ids"] = torch.zeros(batch, TIME_IDS)
        return inputs


def _check(config: Config) -> None:
    hint = "use a text-to-image teacher like Stable Diffusion 1.5, 2.1 or XL"
    types = [*config["down_block_types"], *config["up_block_types"]]
    unknown = sorted(set(types) - BLOCK_TYPES)
    if unknown:
        raise UsageError(f"U-Net blocks of type {', '.join(unknown)} cannot be shrunk yet", hint)
    for key, allowed in ONLY.items():
        value = config.get(key, allowed[0])
        if value not in allowed:
            raise UsageError(f"{key} {value!r} cannot be distilled yet", hint)
    only = config["only_cross_attention"]
    if any(only) if isinstance(only, (list, tuple)) else only:
        raise UsageError("only_cross_attention cannot be distilled yet", hint)
    into, out = config["in_channels"], config["out_channels"]
    if into > out:
        told = f"the teacher takes {into} channels and predicts {out}: it needs an image beside the noisy sample"
        raise UsageError(told, hint)


def _sizes_are_embedded(config: Config) -> bool:
    """Whether pooled text and image sizes are conditioned on, as in SDXL."""
    return config["addition_embed_type"] == "text_time"


def _head_sizes(config: Config) -> dict[int, int]:
    """Channels of one head in each level that attends."""
    numbers = heads(config)
    attending = attention_levels(config, mid_attends(config))
    return {level: config["block_out_channels"][level] // numbers[level] for level in sorted(attending)}


@functools.cache
def head_size(width: int, teacher: int) -> int:
    """The channels of a head in a level of `width`, near the `teacher`'s; fused attention likes multiples of 8."""

    def cost(size: int) -> float:
        awkward = 0.0 if size % 8 == 0 else 0.5 if size % 2 == 0 else 1.0
        return abs(math.log2(size / teacher)) * (1 if size <= teacher else 3) + awkward

    return min((size for size in range(1, width + 1) if width % size == 0), key=cost)


def _most(config: Config) -> dict[int, int]:
    """The most transformer layers in one attention module of each level that attends."""
    layers, last = transformer_layers(config), len(config["block_out_channels"]) - 1
    found = {}
    for level in attention_levels(config, mid_attends(config)):
        blocks = [f"down_blocks.{level}", f"up_blocks.{last - level}", *(["mid_block"] if level == last else [])]
        found[level] = max(count for block in blocks for count in layers[block])
    return found


def _transformer_knobs(config: Config) -> list[Knob]:
    return [
        Knob(f"transformers.{level}", range(1, most + 1), most, "inner")
        for level, most in sorted(_most(config).items())
        if most > 1
    ]


def _transformers(config: Config, changes: Mapping[str, Any], choice: Mapping[str, int]) -> dict[str, Any]:
    """The student's transformer layers, in the form of the teacher's: a number for each level, or for each module."""
    given = config["transformer_layers_per_block"]
    reverse = config["reverse_transformer_layers_per_block"]
    if isinstance(given, int) and reverse is None and not any(name.startswith("transformers.") for name in choice):
        return {}
    levels = range(len(config["block_out_channels"]))
    most, layers = _most(config), list(zip(depths(config), depths({**config, **changes}), strict=True))

    def shrink(entry: Any, level: int, extra: int) -> Any:
        """extra: modules that the block has beyond its level's layers."""
        if isinstance(entry, int):
            # A level without attention keeps its number, which nothing reads.
            return _scaled(entry, level, most, choice)
        old, new = (count + extra for count in layers[level])
        return [_scaled(entry[spread(layer, new, old)], level, most, choice) for layer in range(new)]

    entries = [given] * len(levels) if isinstance(given, int) else given
    found: dict[str, Any] = {
        "transformer_layers_per_block": [shrink(entries[level], level, 0) for level in levels],
    }
    if reverse is not None:
        found["reverse_transformer_layers_per_block"] = [shrink(e, levels[-1 - i], 1) for i, e in enumerate(reverse)]
    return found


def _scaled(count: int, level: int, most: Mapping[int, int], choice: Mapping[str, int]) -> int:
    knob = choice.get(f"transformers.{level}")
    return count if knob is None else shares([count, most[level]], knob)[0]


FAMILY = UNet2DCondition()
