"""Where each tensor of a UNet2DConditionModel student comes from: its transformers, heads and added embeddings."""

from __future__ import annotations

import math
from collections.abc import Sequence

from diffcompress.families.base import Config, TensorRules
from diffcompress.families.unet_rules import Axis, Walk, depths, spread, time_dim

MID = "UNetMidBlock2DCrossAttn"


def tensor_rules(teacher: Config, student: Config) -> TensorRules:
    """Rules for every parameter of `UNet2DConditionModel(student)`, a shrunk `teacher`."""
    return _Walk(teacher, student).run()


def mid_attends(config: Config) -> bool:
    return config["mid_block_type"] == MID


def heads(config: Config) -> list[int]:
    """Attention heads of each level; diffusers calls their number `attention_head_dim` here."""
    return _per_level(config["attention_head_dim"], config)


def transformer_layers(config: Config) -> dict[str, list[int]]:
    """For each block the transformer layers of each of its attention modules, whether or not it has any."""
    given = _per_level(config["transformer_layers_per_block"], config)
    reverse = config["reverse_transformer_layers_per_block"] or given[::-1]
    layers = depths(config)
    found = {f"down_blocks.{i}": _each(entry, layers[i]) for i, entry in enumerate(given)}
    found["mid_block"] = _each(given[-1], 1)
    return found | {f"up_blocks.{i}": _each(entry, layers[-1 - i] + 1) for i, entry in enumerate(reverse)}


def _per_level(value: int | Sequence, config: Config) -> list:
    return [value] * len(config["block_out_channels"]) if isinstance(value, int) else list(value)


def _each(entry: int | Sequence[int], number: int) -> list[int]:
    return [entry] * number if isinstance(entry, int) else list(entry)[:number]


class _Walk(Walk):
    channels = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        numbers = (self.by_level(heads(config), config) for config in (self.teacher, self.student))
        self.heads = list(zip(*numbers, strict=True))
        self.layers = (transformer_layers(self.teacher), transformer_layers(self.student))

    def time(self) -> None:
        self.embed(self.sinusoid())
        if self.student["addition_embed_type"] == "text_time":
            inner = self.new("add_embedding.hidden", (time_dim(self.teacher), time_dim(self.student)))
            self.layer("add_embedding.linear_1", inner, self.student["projection_class_embeddings_input_dim"])
            self.layer("add_embedding.linear_2", self.embedding, inner)

    def mid(self, hidden: Axis) -> Axis:
        kind = self.student["mid_block_type"]
        if kind is None:
            return hidden
        mid = self.levels
        hidden = self.resnet("mid_block.resnets.0", "mid_block.resnets.0", hidden, mid)
        if not mid_attends(self.student):
            return hidden
        self.attention("mid_block.attentions.0", "mid_block.attentions.0", hidden, mid)
        return self.resnet("mid_block.resnets.1", "mid_block.resnets.1", hidden, mid)

    def attention(self, name: str, source: str, hidden: Axis, level: int) -> None:
        """A Transformer2DModel: a residual stream of its own between two projections."""
        inner = self.new(f"{name}.inner", self.inner(level))
        kernel = 0 if self.student["use_linear_projection"] else 1
        self.norm(f"{name}.norm", f"{source}.norm", hidden)
        self.layer(f"{name}.proj_in", inner, hidden, f"{source}.proj_in", kernel=kernel)
        old, new = (_number(counts, at) for counts, at in zip(self.layers, (source, name), strict=True))
        for layer in range(new):
            start = f"{source}.transformer_blocks.{spread(layer, new, old)}"
            self.transformer(f"{name}.transformer_blocks.{layer}", start, inner, level)
        self.layer(f"{name}.proj_out", hidden, inner, f"{source}.proj_out", kernel=kernel)

    def transformer(self, name: str, source: str, inner: Axis, level: int) -> None:
        text = self.by_level(self.student["cross_attention_dim"], self.student)[level]
        for number, keys in enumerate((inner, text), start=1):
            self.norm(f"{name}.norm{number}", f"{source}.norm{number}", inner)
            self.attend(f"{name}.attn{number}", f"{source}.attn{number}", inner, keys, level)
        self.norm(f"{name}.norm3", f"{source}.norm3", inner)
        wide, narrow = self.inner(level)
        forward = self.new(f"{name}.ff", (4 * wide, 4 * narrow))
        # Values, then gates.
        self.layer(f"{name}.ff.net.0.proj", forward + forward, inner, f"{source}.ff.net.0.proj")
        self.layer(f"{name}.ff.net.2", inner, forward, f"{source}.ff.net.2")

    def attend(self, name: str, source: str, inner: Axis, keys: Axis | int, level: int) -> None:
        sizes, number = self.inner(level), self.heads[level]
        own = self.new(f"{name}.heads", sizes, number)
        # Attention divides by sqrt(head size): what is left of a head must weigh as it did.
        scale = math.sqrt((sizes[1] / number[1]) / (sizes[0] / number[0]))
        self.layer(f"{name}.to_q", own, inner, f"{source}.to_q", scale=scale, bias=False)
        self.layer(f"{name}.to_k", own, keys, f"{source}.to_k", bias=False)
        self.layer(f"{name}.to_v", own, keys, f"{source}.to_v", bias=False)
        self.layer(f"{name}.to_out.0", inner, own, f"{source}.to_out.0")

    def inner(self, level: int) -> tuple[int, int]:
        """Width inside the level's transformers: whole heads."""
        old, new = self.heads[level]
        return self.wide[level] // old * old, self.narrow[level] // new * new


def _number(layers: dict[str, list[int]], name: str) -> int:
    """Transformer layers of the attention module `name`."""
    block, _, position = name.partition(".attentions.")
    return layers[block][int(position)]
