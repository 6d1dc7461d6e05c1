"""Where each tensor of a U-Net student comes from: what the U-Net families share.

The walk follows the forward pass. A *stream* is an index set of channels that flows along residual adds: a residual
block that changes the width starts a new one, and so do up- and downsampling convolutions and every block on the way
up (its input is [hidden, skip], so its shortcut is always a convolution).

A student may have fewer levels than its teacher: its own are the teacher's finest, and its mid block, from the
teacher's, stands where that goes on to coarser ones. There streams are *joined*: picked anew, as no channel of one
means what a channel of the other does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from diffcompress.families.base import Config, IndexSet, TensorRule, TensorRules

Axis = tuple[str, ...]
Sizes = tuple[int, int]
# Sinusoids are matched over this many timesteps, the usual length of a noise schedule.
NUM_TIMESTEPS = 1000


def time_dim(config: Config) -> int:
    return config["time_embedding_dim"] or 4 * config["block_out_channels"][0]


def runs(config: Config) -> list[list[int]]:
    """Neighbouring levels of equal width, which residual adds tie together."""
    found: list[list[int]] = []
    widths = config["block_out_channels"]
    for level, width in enumerate(widths):
        if level and widths[level - 1] == width:
            found[-1].append(level)
        else:
            found.append([level])
    return found


def level_modules(config: Config, levels: Sequence[int]) -> tuple[str, ...]:
    """Beginnings of the names of all tensors that work at the resolutions of `levels`."""
    last = len(config["block_out_channels"]) - 1
    found = [f"{stack}.{number}." for i in levels for stack, number in (("down_blocks", i), ("up_blocks", last - i))]
    return (*found, *(["conv_"] if 0 in levels else []), *(["mid_block."] if last in levels else []))


def attention_levels(config: Config, mid: bool) -> set[int]:
    """Levels with attention in their blocks; the mid block, if it attends, counts to the last one."""
    last = len(config["block_out_channels"]) - 1
    down = {i for i, kind in enumerate(config["down_block_types"]) if "Attn" in kind}
    up = {last - i for i, kind in enumerate(config["up_block_types"]) if "Attn" in kind}
    return down | up | ({last} if mid else set())


def depths(config: Config) -> list[int]:
    """Residual layers of each level on the way down; on the way up there is one more."""
    layers = config["layers_per_block"]
    return [layers] * len(config["block_out_channels"]) if isinstance(layers, int) else list(layers)


def spread(position: int, student: int, teacher: int) -> int:
    """The teacher layer that student layer `position` starts from: first and last kept, the rest spread evenly."""
    return round(position * (teacher - 1) / (student - 1)) if student > 1 else 0


def _sinusoid(config: Config) -> np.ndarray:
    """diffusers' timestep embedding `[NUM_TIMESTEPS, block_out_channels[0]]`."""
    size = config["block_out_channels"][0]
    half = size // 2
    frequencies = np.exp(-math.log(10000) * np.arange(half) / (half - config["freq_shift"]))
    angles = np.arange(NUM_TIMESTEPS)[:, None] * frequencies[None, :]
    parts = [np.sin(angles), np.cos(angles)]
    if config["flip_sin_to_cos"]:
        parts.reverse()
    return np.concatenate([*parts, np.zeros((NUM_TIMESTEPS, size % 2))], axis=1)


def _sinusoid_map(teacher: Config, student: Config) -> np.ndarray:
    """`[teacher size, student size]`: the teacher's sinusoid in terms of the student's, by least squares.

    The student has other frequencies, so picked columns would mean other functions of the timestep.
    """
    solution = np.linalg.lstsq(_sinusoid(student), _sinusoid(teacher), rcond=1e-2)[0]
    return solution.T.astype(np.float32)


@dataclass
class Walk:
    """Along the forward pass of `student`, a shrunk `teacher`. Subclasses add what their class has of its own."""

    teacher: Config
    student: Config
    sets: dict[str, IndexSet] = field(default_factory=dict)
    rules: list[TensorRule] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    # The class's default of in_channels and out_channels.
    channels = 3

    def __post_init__(self) -> None:
        own, theirs = len(self.student["block_out_channels"]), len(self.teacher["block_out_channels"])
        # Levels of the student, and how many more its teacher has; beyond the last comes the mid block, as wide as it.
        self.levels, self.dropped = own, theirs - own
        self.wide, self.narrow = (self.by_level(c["block_out_channels"], c) for c in (self.teacher, self.student))
        self.groups = (self.teacher["norm_num_groups"], self.student["norm_num_groups"])
        self.depths = list(zip(depths(self.teacher)[:own], depths(self.student), strict=True))

    def by_level(self, value: int | Sequence, config: Config) -> list:
        """What `config` says for each level (one value: for all) by level of the student, and for the mid block."""
        given = [value] * len(config["block_out_channels"]) if isinstance(value, int) else list(value)
        return [*given[: self.levels], given[-1]]

    def run(self) -> TensorRules:
        hidden = self.stream("conv_in", 0)
        into, out = (self.student.get(key, self.channels) for key in ("in_channels", "out_channels"))
        self.layer("conv_in", hidden, into, kernel=self.student.get("conv_in_kernel", 3))
        self.time()
        hidden, skips = self.down(hidden)
        if self.dropped:
            hidden = self.join("mid_block.into", self.wide[-1])
        hidden = self.mid(hidden)
        if self.dropped:
            hidden = self.join("mid_block.out", self.teacher["block_out_channels"][self.levels])
        hidden = self.up(hidden, skips)
        self.norm("conv_norm_out", "conv_norm_out", hidden)
        self.layer("conv_out", out, hidden, kernel=self.student.get("conv_out_kernel", 3))
        return TensorRules(self.sets, tuple(self.rules), tuple(dict.fromkeys(self.notes)))

    def join(self, name: str, width: int) -> Axis:
        """The student's coarsest stream where its teacher has another one, of `width` channels."""
        return self.new(name, (width, self.narrow[-1]), self.groups)

    def time(self) -> None:
        """The timestep embedding, and what is added to it; sets `embedding`."""
        raise NotImplementedError

    def mid(self, hidden: Axis) -> Axis:
        raise NotImplementedError

    def attention(self, name: str, source: str, hidden: Axis, level: int) -> None:
        """An attention module that leaves the stream as it is."""
        raise NotImplementedError

    def embed(self, source: Axis) -> None:
        """The two layers from the timestep's sinusoid `source` to the embedding."""
        sizes = (time_dim(self.teacher), time_dim(self.student))
        inner, self.embedding = self.new("time_embedding.hidden", sizes), self.new("time_embedding", sizes)
        self.layer("time_embedding.linear_1", inner, source)
        self.layer("time_embedding.linear_2", self.embedding, inner)
        if self.student["num_class_embeds"] is not None:
            table = (self.student["num_class_embeds"], self.embedding)
            self.rule("class_embedding.weight", "class_embedding.weight", table)

    def sinusoid(self, kind: str = "positional") -> Axis:
        same = self.wide[0] == self.narrow[0]
        mixture = None if same or kind != "positional" else _sinusoid_map(self.teacher, self.student)
        return self.new("time_proj", (self.wide[0], self.narrow[0]), mixture=mixture)

    def down(self, hidden: Axis) -> tuple[Axis, list[Axis]]:
        skips = [hidden]
        for level, kind in enumerate(self.student["down_block_types"]):
            block, (old, new) = f"down_blocks.{level}", self.depths[level]
            for layer in range(new):
                source = f"{block}.{{}}.{spread(layer, new, old)}"
                hidden = self.block_layer(block, kind, layer, source, hidden, level)
                skips.append(hidden)
            if level < self.levels - 1:
                name = f"{block}.downsamplers.0"
                hidden = self.resample(name, name, kind, "downsample_type", hidden, level)
                skips.append(hidden)
        return hidden, skips

    def up(self, hidden: Axis, skips: list[Axis]) -> Axis:
        for number, kind in enumerate(self.student["up_block_types"]):
            level = self.levels - 1 - number
            block, theirs = f"up_blocks.{number}", f"up_blocks.{number + self.dropped}"
            old, new = self.depths[level]
            for layer in range(new + 1):
                source = f"{theirs}.{{}}.{spread(layer, new + 1, old + 1)}"
                hidden = self.block_layer(block, kind, layer, source, hidden + skips.pop(), level)
            if level > 0:
                names = f"{block}.upsamplers.0", f"{theirs}.upsamplers.0"
                hidden = self.resample(*names, kind, "upsample_type", hidden, level)
        return hidden

    def block_layer(self, block: str, kind: str, layer: int, source: str, hidden: Axis, level: int) -> Axis:
        """source: name of the teacher's layer, with a place for what it is a layer of."""
        hidden = self.resnet(f"{block}.resnets.{layer}", source.format("resnets"), hidden, level)
        if "Attn" in kind:
            self.attention(f"{block}.attentions.{layer}", source.format("attentions"), hidden, level)
        return hidden

    def resample(self, name: str, source: str, kind: str, option: str, hidden: Axis, level: int) -> Axis:
        """A block's down- or upsampler: a convolution, or a residual block that keeps its width."""
        chosen = "Attn" in kind and self.student.get(option, "conv") == "resnet"
        if kind.removeprefix("UNetRes").startswith("Resnet") or chosen:
            return self.resnet(name, source, hidden, level)
        out = self.stream(name, level)
        self.layer(f"{name}.conv", out, hidden, f"{source}.conv", kernel=3)
        return out

    def resnet(self, name: str, source: str, hidden: Axis, level: int) -> Axis:
        passes = len(hidden) == 1 and self.sets[hidden[0]].size == self.narrow[level]
        passed = len(hidden) == 1 and self.sets[hidden[0]].teacher_size == self.wide[level]
        out = hidden if passes and passed else self.stream(name, level)
        own = self.stream(f"{name}.hidden", level)
        shift = own + own if self.student["resnet_time_scale_shift"] == "scale_shift" else own
        self.norm(f"{name}.norm1", f"{source}.norm1", hidden)
        self.layer(f"{name}.conv1", own, hidden, f"{source}.conv1", kernel=3)
        self.layer(f"{name}.time_emb_proj", shift, self.embedding, f"{source}.time_emb_proj")
        self.norm(f"{name}.norm2", f"{source}.norm2", own)
        self.layer(f"{name}.conv2", out, own, f"{source}.conv2", kernel=3)
        if not passes:
            self.layer(f"{name}.conv_shortcut", out, hidden, None if passed else f"{source}.conv_shortcut", kernel=1)
        elif not passed:
            self.notes.append(f"{name} has no shortcut convolution, unlike the teacher's: its widths became equal")
        return out

    def stream(self, name: str, level: int) -> Axis:
        return self.new(name, (self.wide[level], self.narrow[level]), self.groups)

    def new(self, name: str, sizes: Sizes, groups: Sizes = (1, 1), mixture: np.ndarray | None = None) -> Axis:
        """A new index set; sizes and groups (norm groups or heads) are the teacher's and the student's."""
        self.sets[name] = IndexSet(name, *sizes, *groups, mixture)
        return (name,)

    def norm(self, name: str, source: str, axis: Axis) -> None:
        self.rule(f"{name}.weight", f"{source}.weight", (axis,))
        self.rule(f"{name}.bias", f"{source}.bias", (axis,))

    def layer(
        self,
        name: str,
        out: Axis | int,
        into: Axis | int,
        source: str | None = "",
        kernel: int = 0,
        scale: float = 1.0,
        bias: bool = True,
    ) -> None:
        """Weight and bias of a linear layer or (kernel > 0) a convolution; source "": the same name, None: identity."""
        source = name if source == "" else source
        window = (kernel, kernel) if kernel else ()
        weight = None if source is None else f"{source}.weight"
        self.rule(f"{name}.weight", weight, (out, into, *window), scale)
        if bias:
            self.rule(f"{name}.bias", None if source is None else f"{source}.bias", (out,), scale)

    def rule(self, name: str, source: str | None, axes: tuple[Axis | int, ...], scale: float = 1.0) -> None:
        """An axis is a tuple of sets, or the size of one that stays whole."""
        shape = tuple(a if isinstance(a, int) else sum(self.sets[s].size for s in a) for a in axes)
        cuts = tuple(() if isinstance(a, int) else a for a in axes)
        self.rules.append(TensorRule(name, source, cuts, shape, scale))
