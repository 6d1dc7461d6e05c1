"""UNet2DModel: the unconditional or class-conditional pixel and latent U-Nets of DDPM, DDIM and LDM pipelines."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from diffcompress.errors import UsageError
from diffcompress.families.base import Config, TensorRules, Variant, complete, plain_config
from diffcompress.families.unet import HEAD_COST, UNet, divisors, group_options, knobs, shrunk
from diffcompress.families.unet2d_rules import mid_attends, tensor_rules
from diffcompress.families.unet_rules import attention_levels

BLOCK_TYPES = frozenset(
    {"DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D", "UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"}
)


class UNet2D(UNet):
    """Attention heads have a size of their own; a level has as many as fit."""

    class_name = "UNet2DModel"
    recipe = "default"
    pipelines = ("DDPMPipeline", "DDIMPipeline")

    def bare_pipeline(self, scheduler: str) -> str | None:
        return "DDPMPipeline" if scheduler.startswith("DDPM") else "DDIMPipeline"

    def variants(self, config: Config, *, channels_per_group: int) -> tuple[Variant, ...]:
        """One variant for each number of norm groups and attention head size that a student may have."""
        _check(config)
        attending = attention_levels(config, mid_attends(config))
        found = []
        for groups, cost in group_options(config, channels_per_group):
            for head_dim in _head_dims(config):
                multiples = {level: head_dim for level in attending} if head_dim else {}
                allowed = knobs(config, groups, multiples, channels_per_group)
                if allowed is None:
                    continue
                if head_dim is None:
                    found.append(Variant({"groups": groups}, allowed, cost))
                    continue
                parts = math.log2(config["attention_head_dim"] / head_dim)
                found.append(Variant({"groups": groups, "head_dim": head_dim}, allowed, cost + HEAD_COST * parts))
        return tuple(found)

    def shrunk_config(self, config: Config, choice: Mapping[str, int]) -> dict[str, Any]:
        changes = shrunk(config, choice)
        if "head_dim" in choice:
            changes["attention_head_dim"] = choice["head_dim"]
        if config["attn_norm_num_groups"] is not None:
            width = changes["block_out_channels"][-1]
            fewest = width // choice["groups"]
            own = config["attn_norm_num_groups"]
            fitting = [g for g in divisors(own) if width % g == 0 and width // g >= min(fewest, 4)]
            changes["attn_norm_num_groups"] = fitting[0]
        return plain_config(self.class_name, config, **changes)

    def tensor_rules(self, teacher: Config, student: Config) -> TensorRules:
        return tensor_rules(teacher, student)

    def predict(self, model: nn.Module, noisy: Tensor, timestep: Tensor, conditioning: Mapping[str, Tensor]) -> Tensor:
        return model(noisy, timestep, class_labels=conditioning.get("class_labels"), return_dict=False)[0]

    def sample_shape(self, config: Config) -> tuple[int, ...]:
        size = config["sample_size"]
        if size is None:
            raise UsageError("the teacher's config has no sample_size", "write the height and width it was trained at")
        sides = [size, size] if isinstance(size, int) else list(size)
        if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
            raise UsageError(f"the teacher's sample_size {size!r} is no height and width", "write a number, or two")
        return (config["in_channels"], *sides)

    def text_conditioning(self, config: Config) -> tuple[str, ...]:
        return ()

    def tiny_config(self) -> dict[str, Any]:
        return complete(
            self.class_name,
            {
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
            },
        )

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
    if config["class_embed_type"] is not None:
        kind = config["class_embed_type"]
        raise UsageError(f"class_embed_type '{kind}' cannot be distilled yet", "use a teacher with num_class_embeds")
    if config["time_embedding_type"] == "fourier":
        raise UsageError(
            "time_embedding_type 'fourier' takes the logarithm of the timestep, which is infinite at 0: score-SDE "
            "models have it, whose noise levels begin elsewhere",
            "use a DDPM or LDM teacher",
        )


def _head_dims(config: Config) -> list[int | None]:
    """The teacher's head size first, then smaller even ones; None (one head per level, whatever its width) stays."""
    size = config["attention_head_dim"]
    if size is None or not attention_levels(config, mid_attends(config)):
        return [None]
    liked = [even for even in range(size - 1, 3, -1) if even % 8 == 0 or (even % 2 == 0 and even < 16)]
    return [size, *liked]


FAMILY = UNet2D()
