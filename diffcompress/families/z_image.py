"""ZImageTransformer2DModel: the single-stream transformer of Z-Image (2025, arXiv 2511.22699)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from diffcompress.errors import UsageError
from diffcompress.families.base import Config, Stack
from diffcompress.families.transformer import Transformer, simple_rules
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
REFINERS = Stack("n_refiner_layers", "noise_refiner")
STACKS = (Stack("n_layers", "layers"), REFINERS)
# As the pipeline counts: time runs from 0 (noise) to 1, and patches are 2 x 2 pixels of one frame.
TRAIN_TIMESTEPS = 1000
PATCH, FRAMES = 2, 1
# The time embedding is as wide as the model, up to this.
MOST_TIME_CHANNELS = 256


def _size(config: Config) -> tuple[int, int]:
    heads = config["n_heads"]
    return heads, config["dim"] // heads


def _axes(config: Config) -> list[int]:
    return list(config["axes_dims"])


def _resized(config: Config, heads: int, head_dim: int, depths: Mapping[str, int]) -> dict[str, Any]:
    axes = rotary_axes(_axes(config), head_dim)
    return {"dim": heads * head_dim, "n_heads": heads, "n_kv_heads": heads, "axes_dims": axes}


def _rules(teacher: Config, student: Config) -> Rules:
    wide, narrow = (heads * size for heads, size in (_size(teacher), _size(student)))
    roles = (
        Role(r"t_embedder\.mlp\.2\.(weight|bias)", ("time", None)),
        Role(r".*adaLN_modulation\.\d\.weight", (None, "time")),
    )
    depth = spread(student[REFINERS.key], teacher[REFINERS.key])
    return simple_rules(
        STACKS,
        teacher,
        student,
        (_size(teacher), _size(student)),
        ffn=(int(wide / 3 * 8), int(narrow / 3 * 8)),
        head=nearest_positions(_axes(teacher), _axes(student), pair=2),
        normed=teacher["qk_norm"],
        widths={"time": Width(min(wide, MOST_TIME_CHANNELS), min(narrow, MOST_TIME_CHANNELS))},
        roles=roles,
        sources={"context_refiner": depth},
    )


def _forward(model: nn.Module, noisy: Tensor, timestep: Tensor, conditioning: Mapping[str, Tensor]) -> Tensor:
    """The class takes lists: images with a frame axis and captions without padding; it predicts minus the velocity."""
    captions, lengths = conditioning["cap_feats"], conditioning["cap_feats.length"]
    rows = [captions.shape[1]] * len(noisy) if lengths.is_meta else lengths.tolist()
    images = list(noisy.unsqueeze(2).unbind(0))
    texts = [caption[:row] for caption, row in zip(captions, rows, strict=True)]
    time = (TRAIN_TIMESTEPS - timestep) / TRAIN_TIMESTEPS
    return -torch.stack(model(images, time, texts, return_dict=False)[0]).squeeze(2)


def _shape(config: Config) -> tuple[int, ...]:
    """The pipeline's 1024 pixels, or as many rows and columns as the rotary embedding has."""
    rows, columns = (min(128, PATCH * most) for most in config["axes_lens"][1:])
    return (config["in_channels"], rows, columns)


def _inputs(config: Config, batch: int) -> dict[str, Tensor]:
    captions = torch.zeros(batch, 12, config["cap_feat_dim"])
    return {"cap_feats": captions, "cap_feats.length": torch.full((batch,), 12)}


def _check(config: Config) -> None:
    if config.get("siglip_feat_dim") is not None:
        raise UsageError(
            f"a ZImageTransformer2DModel with siglip_feat_dim {config['siglip_feat_dim']} also takes images, which is "
            "not supported",
            "text-to-image teachers can be shrunk",
        )
    sizes = list(zip(config["all_patch_size"], config["all_f_patch_size"], strict=False))
    if sizes != [(PATCH, FRAMES)]:
        raise UsageError(
            f"a ZImageTransformer2DModel with patch sizes {sizes} is not supported",
            f"its pipeline uses {(PATCH, FRAMES)} alone",
        )


def _tiny() -> dict[str, Any]:
    return {
        "dim": 96,
        "n_heads": 4,
        "n_kv_heads": 4,
        "n_layers": 3,
        "n_refiner_layers": 2,
        "in_channels": 2,
        "cap_feat_dim": 8,
        "axes_dims": [8, 8, 8],
        "axes_lens": [640, 8, 8],
    }


FAMILY = Transformer(
    class_name="ZImageTransformer2DModel",
    pipelines=("ZImagePipeline",),
    stacks=STACKS,
    size=_size,
    resized=_resized,
    rules=_rules,
    forward=_forward,
    shape=_shape,
    patch=lambda _config: PATCH,
    inputs=_inputs,
    tiny=_tiny,
    text=lambda _config: ("cap_feats",),
    head_sizes=lambda config: rotary_sizes(_axes(config)),
    rotary=True,
    check=_check,
)
