"""HunyuanDiT2DModel: bilingual text to image with skips between mirrored blocks (Li et al. 2024, arXiv 2405.08748)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from diffcompress.errors import UsageError
from diffcompress.families.base import Config, Stack
from diffcompress.families.transformer import Transformer, mlp_roles, simple_rules
from diffcompress.families.transformer_rules import Role, Rules, Width, nearest_positions, spread

STACKS = (Stack("num_layers", "blocks", step=2),)
TEXT = ("encoder_hidden_states", "text_embedding_mask", "encoder_hidden_states_t5", "text_embedding_mask_t5")
# Versions before 1.2 are also told sizes and a style.
TOLD, SIZE_CHANNELS = ("image_meta_size", "style"), 6 * 256
# The latent size at which rotary positions count one by one; others are stretched to it.
BASE_SIZE = 64


def _size(config: Config) -> tuple[int, int]:
    return config["num_attention_heads"], config["attention_head_dim"]


def _depth(config: Config) -> int:
    return config["num_layers"]


def _is_told(config: Config) -> bool:
    return config["use_style_cond_and_image_meta_size"]


def _check(config: Config) -> None:
    if _depth(config) % 2:
        raise UsageError(
            f"HunyuanDiT pairs its blocks from both ends, and this one has {_depth(config)} of them",
            "take a HunyuanDiT of an even number of blocks",
        )


def _resized(config: Config, heads: int, head_dim: int, depths: Mapping[str, int]) -> dict[str, Any]:
    width = heads * head_dim
    pooled = config["pooled_projection_dim"]  # between two of its own layers
    return {
        "num_attention_heads": heads,
        "attention_head_dim": head_dim,
        "hidden_size": width,
        "pooled_projection_dim": max(1, round(pooled * width / config["hidden_size"])),
    }


def _rules(teacher: Config, student: Config) -> Rules:
    sizes = (_size(teacher), _size(student))
    (_, old), (_, new) = sizes
    wide, narrow = (heads * size for heads, size in sizes)
    ratio = teacher["mlp_ratio"]
    told = ("sizes", "residual") if _is_told(teacher) else ()
    roles = (
        *mlp_roles("timestep_embedder"),
        Role(r"time_extra_emb\.pooler\.c_proj\.(weight|bias)", ("pooled",)),
        Role(r"(?P<at>.*extra_embedder)\.linear_1\.weight", ("{at}.extra", ("pooled", *told))),
        *mlp_roles("extra_embedder", hidden="extra"),
    )
    widths = {
        "pooled": Width(teacher["pooled_projection_dim"], student["pooled_projection_dim"]),
        "sizes": Width(SIZE_CHANNELS, SIZE_CHANNELS),
        "extra": Width(4 * wide, 4 * narrow),
    }
    return simple_rules(
        STACKS,
        teacher,
        student,
        sizes,
        ffn=(int(ratio * wide), int(ratio * narrow)),
        head=nearest_positions([old // 2] * 2, [new // 2] * 2, pair=2),  # rows, columns
        normed=True,
        widths=widths,
        roles=roles,
        sources={"blocks": mirrored(_depth(student), _depth(teacher))},
    )


def mirrored(student: int, teacher: int) -> list[int]:
    """The teacher block of each student block, such that blocks joined by a skip come from blocks joined by a skip."""
    first = spread(student // 2, teacher // 2)
    return first + [teacher - 1 - block for block in reversed(first)]


def _rotary(model: nn.Module, noisy: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines for the model's own head size; the shorter side is centred, as in the pipeline."""
    from diffusers.models.embeddings import get_2d_rotary_pos_embed

    patch: int = model.config.patch_size  # type: ignore[union-attr, assignment]
    rows, columns = noisy.shape[-2] // patch, noisy.shape[-1] // patch
    base = BASE_SIZE // patch
    sides = [round(base * side / max(rows, columns)) for side in (rows, columns)]
    start = [round((base - side) / 2) for side in sides]
    stop = [begin + side for begin, side in zip(start, sides, strict=True)]
    head_dim = model.inner_dim // model.num_heads  # type: ignore[operator]
    return get_2d_rotary_pos_embed(head_dim, (start, stop), (rows, columns), device=noisy.device, output_type="pt")


def _forward(model: nn.Module, noisy: Tensor, timestep: Tensor, conditioning: Mapping[str, Tensor]) -> Tensor:
    given = {name: conditioning[name].contiguous() for name in (*TEXT, *TOLD) if name in conditioning}
    # The class embeds the time in the dtype that the time is given in.
    time = timestep.to(noisy.dtype)
    return model(noisy, time, image_rotary_emb=_rotary(model, noisy), return_dict=False, **given)[0]


def _shape(config: Config) -> tuple[int, ...]:
    return (config["in_channels"], config["sample_size"], config["sample_size"])


def _inputs(config: Config, batch: int) -> dict[str, Tensor]:
    clip, t5 = config["text_len"], config["text_len_t5"]
    told = {"image_meta_size": torch.ones(batch, 6), "style": torch.zeros(batch, dtype=torch.long)}
    return {
        "encoder_hidden_states": torch.zeros(batch, clip, config["cross_attention_dim"]),
        "text_embedding_mask": torch.ones(batch, clip, dtype=torch.long),
        "encoder_hidden_states_t5": torch.zeros(batch, t5, config["cross_attention_dim_t5"]),
        "text_embedding_mask_t5": torch.ones(batch, t5, dtype=torch.long),
        **(told if _is_told(config) else {}),
    }


def _tiny() -> dict[str, Any]:
    return {
        "num_attention_heads": 4,
        "attention_head_dim": 8,
        "hidden_size": 32,
        "in_channels": 4,
        "patch_size": 2,
        "sample_size": 8,
        "num_layers": 6,
        "mlp_ratio": 4.3637,
        "cross_attention_dim": 8,
        "cross_attention_dim_t5": 16,
        "pooled_projection_dim": 16,
        "text_len": 4,
        "text_len_t5": 6,
        "use_style_cond_and_image_meta_size": False,
    }


FAMILY = Transformer(
    class_name="HunyuanDiT2DModel",
    pipelines=("HunyuanDiTPipeline",),
    stacks=STACKS,
    size=_size,
    resized=_resized,
    rules=_rules,
    forward=_forward,
    shape=_shape,
    inputs=_inputs,
    tiny=_tiny,
    text=lambda config: (*TEXT, *TOLD) if _is_told(config) else TEXT,
    check=_check,
    rotary=True,
    recipe="dit-text",
    # A quarter of a head for the sines, and cosines, of rows, and columns.
    head_sizes=lambda config: range(_size(config)[1] // 4 * 4, 0, -4),
)
