"""What the U-Net families share: levels, block types and the interface stay; widths and depths shrink."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from torch import Tensor, nn

from diffcompress.families.base import Config, Knob, Stack
from diffcompress.families.shapes import shapes
from diffcompress.families.unet_rules import depths, level_modules, runs, time_dim

# Its output is the prediction, with a learned variance behind where there is one.
OUTPUT_LAYER = "conv_out"
# A sinusoid needs two frequencies per half (diffusers divides by half - freq_shift).
FEWEST_CHANNELS = 4
# Below this many channels at full resolution, layers go before width does.
NARROW = 16
# Levels from this width up have at least so many channels in a norm group.
WIDE, COMFORTABLE = 64, 4
# Of images in red, green and blue: channels in a norm group at least, and a share of the teacher's width.
RGB, COLOURED, NEARLY = 3, 3, 0.75
# Halving the head size is as bad as this much imbalance between widths.
HEAD_COST = 0.15


class UNet:
    """The answers that do not depend on which U-Net it is."""

    subfolder = "unet"
    kind: Literal["unet", "transformer"] = "unet"
    stacks: tuple[Stack, ...] = ()
    class_name: str
    call_options: Mapping[str, Any] = {}
    pipelines: tuple[str, ...]
    former: str | None = None
    optional_encoders: tuple[str, ...] = ()

    def bare_pipeline(self, scheduler: str) -> str | None:
        return None

    def sample_shape(self, config: Config) -> tuple[int, ...]:
        raise NotImplementedError

    def reasons(self, config: Config, student: Config) -> Mapping[str, str]:
        built, levels = shapes(self.class_name, student), range(len(student["block_out_channels"]))
        owned = [built.elements_of(level_modules(student, [level])) for level in levels]
        told = ", ".join(f"{100 * size / built.elements_of(('',)):.0f}" for size in owned)
        sides = ", ".join(str(-(-self.sample_shape(config)[-1] // 2**i)) for i in levels)
        fewest = min(student["block_out_channels"]) // student["norm_num_groups"]
        return {
            "block_out_channels": f"{told} % of the parameters at {sides} pixels",
            "norm_num_groups": f"{fewest} channels or more in a group: one alone would hide the timestep",
            "layers_per_block": "fewer layers rather than narrower ones",
            "attention_head_dim": "heads that divide the new widths, in sizes near the teacher's",
            "time_embedding_dim": "brings the size to the one that was asked for",
        }

    def blocks(self, model: nn.Module) -> tuple[str, ...]:
        """The last residual or attention layer of every block, before its down- or upsampler."""
        names = []
        for stack in ("down_blocks", "mid_block", "up_blocks"):
            module = getattr(model, stack)
            if module is None:
                continue
            blocks = [(stack, module)] if stack == "mid_block" else [(f"{stack}.{i}", b) for i, b in enumerate(module)]
            for name, block in blocks:
                attends = stack != "mid_block" and bool(getattr(block, "attentions", ()))
                layers = block.attentions if attends else block.resnets
                names.append(f"{name}.{'attentions' if attends else 'resnets'}.{len(layers) - 1}")
        return tuple(names)

    def feature(self, output: Any) -> Tensor:
        return output if isinstance(output, Tensor) else output[0]

    def num_classes(self, config: Config) -> int | None:
        return config["num_class_embeds"] if config["class_embed_type"] is None else None

    def null_class(self, config: Config) -> int | None:
        return None

    def num_tokens(self, config: Config, shape: tuple[int, ...]) -> int:
        return shape[-2] * shape[-1]


def group_options(config: Config, channels_per_group: int) -> list[tuple[int, float]]:
    """Numbers of norm groups that a student may have, the teacher's first, with their costs (see Variant)."""
    groups = config["norm_num_groups"]
    # Each halving that is spared is worth a seventh of the distance (docs/decisions/0011).
    # The published extreme students keep them even at one channel each: stay close to these.
    weight = 2.0 if channels_per_group == 1 else 0.3
    return [(number, weight * math.log2(groups / number)) for number in divisors(groups)]


def _fewest_channels(config: Config, groups: int, per_group: int, level: int) -> int:
    """Channels of a level at least: `per_group` in each norm group, half as many again at full resolution, which every
    pixel passes, and COMFORTABLE ones in levels that are WIDE, where they cost nothing. As published, one stays one.

    Small students of images in colour need COLOURED ones, and may have all of their teacher's groups only where they
    are NEARLY as wide: else up to half of their samples fail (docs/decisions/0011).
    """
    if groups == 1 or per_group == 1:
        return max(FEWEST_CHANNELS, groups)
    if config["in_channels"] == RGB and groups * COMFORTABLE <= WIDE:
        if groups == config["norm_num_groups"]:
            return math.ceil(NEARLY * config["block_out_channels"][level])
        per_group = max(per_group, COLOURED)
    most = math.ceil(1.5 * per_group) if level == 0 else per_group
    return max(FEWEST_CHANNELS, groups * (max(most, COMFORTABLE) if groups * COMFORTABLE > WIDE else most))


def knobs(
    config: Config, groups: int, multiples: Mapping[int, int], channels_per_group: int, inner: Iterable[Knob] = ()
) -> tuple[Knob, ...] | None:
    """All knobs with the values that `groups` norm groups allow; None if some level has no value left.

    multiples: by level, what its width must be a multiple of (whole heads). inner: repeats inside layers.
    """
    teacher = config["block_out_channels"]
    found = []
    for number, run in enumerate(runs(config)):
        width = teacher[run[0]]
        step = math.lcm(2, groups, *(multiples[level] for level in run if level in multiples))
        # A teacher may have fewer than a student, which must not be blind to the timestep.
        fewest = _fewest_channels(config, groups, channels_per_group, run[0])
        values = range(-(-fewest // step) * step, width + 1, step)
        if not values:
            return None
        narrow = NARROW if number == 0 else 0
        modules = level_modules(config, run)
        found.append(Knob(f"channels.{number}", values, width, "width", narrow, modules, tuple(run)))
    layers = max(depths(config))
    found.append(Knob("layers", range(1, layers + 1), layers, "depth"))
    found += inner
    time = time_dim(config)
    found.append(Knob("time", range(min(8, time), time + 1), time, "fine"))
    return tuple(found)


def shrunk(config: Config, choice: Mapping[str, int]) -> dict[str, Any]:
    """The changes to `config` that every U-Net has in common.

    Students have no dropout: their targets are the teacher's predictions, not the data.
    """
    widths = [0] * len(config["block_out_channels"])
    for number, run in enumerate(runs(config)):
        for level in run:
            widths[level] = choice[f"channels.{number}"]
    layers = config["layers_per_block"]
    return {
        "block_out_channels": widths,
        "layers_per_block": choice["layers"] if isinstance(layers, int) else shares(layers, choice["layers"]),
        "norm_num_groups": choice["groups"],
        "time_embedding_dim": choice["time"],
        "dropout": 0.0,
    }


def shares(counts: Iterable[int], most: int) -> list[int]:
    """`counts` shrunk in proportion so that the largest becomes `most`; none that repeats at all vanishes."""
    kept = list(counts)
    return [max(min(count, 1), round(count * most / max(kept))) for count in kept]


def divisors(number: int) -> list[int]:
    """All divisors of `number`, descending."""
    return [d for d in range(number, 0, -1) if number % d == 0]
