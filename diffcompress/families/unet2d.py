"""UNet2DModel: the unconditional or class-conditional pixel and latent U-Nets of DDPM, DDIM and LDM pipelines."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from diffcompress.errors import UsageError
from diffcompress.families.base import Config, Knob, TensorRules, Variant, plain_config
from diffcompress.families.unet2d_rules import attention_levels, runs, tensor_rules, time_dim

BLOCK_TYPES = frozenset(
    {"DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D", "UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"}
)
# A sinusoid needs two frequencies per half (diffusers divides by half - freq_shift).
FEWEST_CHANNELS = 4
# Below this many channels at full resolution, layers go before width does.
NARROW = 16


class UNet2D:
    """Levels, block types and the interface stay; widths, layers per block and the time embedding shrink."""

    class_name = "UNet2DModel"
    subfolder = "unet"
    kind: Literal["unet", "transformer"] = "unet"
    recipe = "default"
    call_options: Mapping[str, Any] = {}

    def variants(self, config: Config, *, channels_per_group: int) -> tuple[Variant, ...]:
        """One variant for each number of norm groups and attention head size that a student may have."""
        _check(config)
        groups = config.get("norm_num_groups", 32)
        # The published extreme students keep the teacher's groups even at one channel each: stay close to them.
        weight = 2.0 if channels_per_group == 1 else 0.05
        found = []
        for student_groups in _divisors(groups):
            for head_dim in _head_dims(config):
                knobs = _knobs(config, student_groups, head_dim, channels_per_group)
                fixed = {"groups": student_groups} | ({} if head_dim is None else {"head_dim": head_dim})
                cost = weight * math.log2(groups / student_groups)
                if head_dim is not None:
                    cost += 0.15 * math.log2(config.get("attention_head_dim", 8) / head_dim)
                if knobs is not None:
                    found.append(Variant(fixed, knobs, cost))
        return tuple(found)

    def shrunk_config(self, config: Config, choice: Mapping[str, int]) -> dict[str, Any]:
        """Students have no dropout: their targets are the teacher's predictions, not the data."""
        widths = [0] * len(config["block_out_channels"])
        for number, run in enumerate(runs(config)):
            for level in run:
                widths[level] = choice[f"channels.{number}"]
        changes: dict[str, Any] = {
            "block_out_channels": widths,
            "layers_per_block": choice["layers"],
            "norm_num_groups": choice["groups"],
            "time_embedding_dim": choice["time"],
            "dropout": 0.0,
        }
        if "head_dim" in choice:
            changes["attention_head_dim"] = choice["head_dim"]
        if config.get("attn_norm_num_groups") is not None:
            fewest = widths[-1] // choice["groups"]
            own = config["attn_norm_num_groups"]
            fitting = [g for g in _divisors(own) if widths[-1] % g == 0 and widths[-1] // g >= min(fewest, 4)]
            changes["attn_norm_num_groups"] = fitting[0]
        return plain_config(self.class_name, config, **changes)

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

    def tensor_rules(self, teacher: Config, student: Config) -> TensorRules:
        return tensor_rules(teacher, student)

    def predict(self, model: nn.Module, noisy: Tensor, timestep: Tensor, conditioning: Mapping[str, Tensor]) -> Tensor:
        return model(noisy, timestep, class_labels=conditioning.get("class_labels"), return_dict=False)[0]

    def sample_shape(self, config: Config) -> tuple[int, ...]:
        size = config.get("sample_size")
        if size is None:
            raise UsageError("the teacher's config has no sample_size", "write the height and width it was trained at")
        height, width = (size, size) if isinstance(size, int) else size
        return (config.get("in_channels", 3), height, width)

    def num_classes(self, config: Config) -> int | None:
        return config.get("num_class_embeds") if config.get("class_embed_type") is None else None

    def null_class(self, config: Config) -> int | None:
        return None

    def text_conditioning(self, config: Config) -> tuple[str, ...]:
        return ()

    def num_tokens(self, config: Config, shape: tuple[int, ...]) -> int:
        return shape[-2] * shape[-1]

    def tiny_config(self) -> dict[str, Any]:
        return {
            "_class_name": self.class_name,
            "sample_size": 8,
            "in_channels": 1,
            "out_channels": 1,
            "block_out_channels": [16, 32],
            "layers_per_block": 1,
            "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
            "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
            "attention_head_dim": 8,
            "norm_num_groups": 4,
        }

    def example_inputs(self, config: Config, batch: int = 1) -> dict[str, Tensor]:
        inputs = {
            "noisy": torch.zeros(batch, *self.sample_shape(config)),
            "timestep": torch.zeros(batch, dtype=torch.long),
        }
        if self.num_classes(config) is not None:
            inputs["class_labels"] = torch.zeros(batch, dtype=torch.long)
        return inputs


def _check(config: Config) -> None:
    types = [*config["down_block_types"], *config["up_block_types"]]
    unknown = sorted({name for name in types if name.removeprefix("UNetRes") not in BLOCK_TYPES})
    if unknown:
        raise UsageError(f"U-Net blocks of type {', '.join(unknown)} cannot be shrunk yet", "use a DDPM or LDM teacher")
    if config.get("class_embed_type") is not None:
        kind = config["class_embed_type"]
        raise UsageError(f"class_embed_type '{kind}' cannot be distilled yet", "use a teacher with num_class_embeds")


def _knobs(config: Config, groups: int, head_dim: int | None, channels_per_group: int) -> tuple[Knob, ...] | None:
    """All knobs with the values that `groups` and `head_dim` allow; None if some level has no value left."""
    teacher = config["block_out_channels"]
    attending = attention_levels(config)
    knobs = []
    for number, run in enumerate(runs(config)):
        width = teacher[run[0]]
        step = math.lcm(2, groups, head_dim if head_dim and attending & set(run) else 1)
        fewest = max(FEWEST_CHANNELS, min(groups * channels_per_group, width))
        values = range(-(-fewest // step) * step, width + 1, step)
        if not values:
            return None
        knobs.append(Knob(f"channels.{number}", values, width, "width", NARROW if number == 0 else 0))
    layers = config.get("layers_per_block", 2)
    knobs.append(Knob("layers", range(1, layers + 1), layers, "depth"))
    time = time_dim(config)
    knobs.append(Knob("time", range(min(8, time), time + 1), time, "fine"))
    return tuple(knobs)


def _divisors(number: int) -> list[int]:
    return [d for d in range(number, 0, -1) if number % d == 0]


def _head_dims(config: Config) -> list[int | None]:
    """The teacher's head size first, then its halves; None (one head per level, whatever its width) stays None."""
    size = config.get("attention_head_dim", 8)
    if size is None or not attention_levels(config):
        return [None]
    sizes = [size]
    while sizes[-1] % 2 == 0 and sizes[-1] > 4:
        sizes.append(sizes[-1] // 2)
    return sizes


FAMILY = UNet2D()
