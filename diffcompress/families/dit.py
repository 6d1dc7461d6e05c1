"""DiTTransformer2DModel: the class-conditional DiT of Peebles and Xie (2023, arXiv 2212.09748)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from diffcompress.families.base import Config, Stack
from diffcompress.families.transformer import Transformer, mlp_roles, simple_rules
from diffcompress.families.transformer_rules import Rules, nearest_positions

STACKS = (Stack("num_layers", "transformer_blocks"),)


def _size(config: Config) -> tuple[int, int]:
    return config["num_attention_heads"], config["attention_head_dim"]


def _resized(config: Config, heads: int, head_dim: int, depths: Mapping[str, int]) -> dict[str, Any]:
    return {"num_attention_heads": heads, "attention_head_dim": head_dim}


def _rules(teacher: Config, student: Config) -> Rules:
    wide, narrow = (heads * size for heads, size in (_size(teacher), _size(student)))
    # The position embedding is built anew from the student's width: sine and cosine of rows and of columns.
    residual = nearest_positions([wide // 4] * 4, [narrow // 4] * 4)
    return simple_rules(
        STACKS,
        teacher,
        student,
        (_size(teacher), _size(student)),
        residual=residual,
        roles=mlp_roles("timestep_embedder"),
    )


def _forward(model: nn.Module, noisy: Tensor, timestep: Tensor, conditioning: Mapping[str, Tensor]) -> Tensor:
    for block in model.transformer_blocks:  # type: ignore[union-attr]
        # Each block would drop labels on its own while training; the null class is trained on like any other.
        block.norm1.emb.class_embedder.eval()
    return model(noisy, timestep=timestep, class_labels=conditioning["class_labels"], return_dict=False)[0]


def _shape(config: Config) -> tuple[int, ...]:
    return (config["in_channels"], config["sample_size"], config["sample_size"])


def _classes(config: Config) -> int:
    return config["num_embeds_ada_norm"]


def _inputs(config: Config, batch: int) -> dict[str, Tensor]:
    return {"class_labels": torch.zeros(batch, dtype=torch.long)}


def _tiny() -> dict[str, Any]:
    return {
        "num_attention_heads": 4,
        "attention_head_dim": 8,
        "in_channels": 2,
        "out_channels": 4,
        "num_layers": 3,
        "sample_size": 8,
        "patch_size": 2,
        "num_embeds_ada_norm": 5,
    }


FAMILY = Transformer(
    class_name="DiTTransformer2DModel",
    pipelines=("DiTPipeline",),
    former="ada_norm_zero",
    stacks=STACKS,
    size=_size,
    resized=_resized,
    rules=_rules,
    forward=_forward,
    shape=_shape,
    inputs=_inputs,
    tiny=_tiny,
    classes=_classes,
    null=_classes,  # the table's last row
    channels=lambda _config: 4,
    recipe="dit",
)
