"""FluxTransformer2DModel: FLUX.1 [dev] and [schnell] of Black Forest Labs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from diffcompress.errors import UsageError
from diffcompress.families.base import Config, Stack
from diffcompress.families.mmdit_rules import image_positions, pack, stream_widths, time_roles, unpack, unrounded
from diffcompress.families.transformer import Transformer, simple_rules
from diffcompress.families.transformer_rules import Role, Rules, nearest_positions, rotary_axes, rotary_sizes

STACKS = (
    Stack("num_single_layers", "single_transformer_blocks"),
    Stack("num_layers", "transformer_blocks"),
)
TEXT = ("encoder_hidden_states", "pooled_projections")
# What the pipeline does unless told otherwise: T5's tokens, the guidance that it tells the denoiser, 1024 pixels.
TEXT_TOKENS, GUIDANCE, SIDE = 512, 3.5, 128


def _size(config: Config) -> tuple[int, int]:
    return config["num_attention_heads"], config["attention_head_dim"]


def _axes(config: Config) -> list[int]:
    return list(config["axes_dims_rope"] or (16, 56, 56))


def _guided(config: Config) -> bool:
    return bool(config["guidance_embeds"])


def _resized(config: Config, heads: int, head_dim: int, depths: Mapping[str, int]) -> dict[str, Any]:
    axes = rotary_axes(_axes(config), head_dim)
    return {"num_attention_heads": heads, "attention_head_dim": head_dim, "axes_dims_rope": axes}


def _rules(teacher: Config, student: Config) -> Rules:
    sizes = (_size(teacher), _size(student))
    wide, narrow = (heads * size for heads, size in sizes)
    single = r"(?P<at>single_transformer_blocks\.\d+)"
    rules = simple_rules(
        STACKS,
        teacher,
        student,
        sizes,
        head=nearest_positions(_axes(teacher), _axes(student), pair=2),
        normed=True,
        widths=stream_widths(wide, narrow),
        roles=(
            *time_roles(r"(timestep|guidance|text)_embedder", r"(norm1|norm1_context|norm|norm_out)\.linear"),
            Role(rf"{single}\.proj_mlp\.weight", ("{at}.ffn", None)),
            Role(rf"{single}\.proj_mlp\.bias", ("{at}.ffn",)),
            Role(rf"{single}\.proj_out\.weight", (None, ("{at}.attn.heads", "{at}.ffn"))),
        ),
    )
    if not _guided(teacher):
        return rules
    note = f"the student learns the teacher's predictions at guidance {GUIDANCE} alone, so that other values do little"
    return replace(rules, notes=(note,))


def _forward(model: nn.Module, noisy: Tensor, timestep: Tensor, conditioning: Mapping[str, Tensor]) -> Tensor:
    height, width = noisy.shape[-2:]
    text_tokens = conditioning["encoder_hidden_states"].shape[1]
    with unrounded(model.get_submodule("x_embedder")):
        tokens = model(
            pack(noisy),
            timestep=timestep / 1000,
            img_ids=image_positions(height, width, noisy.device),
            txt_ids=torch.zeros(text_tokens, 3, device=noisy.device),
            return_dict=False,
            **conditioning,
        )[0]
    return unpack(tokens, height, width)


def _check(config: Config) -> None:
    given, made = config["in_channels"], config["out_channels"] or config["in_channels"]
    if made != given:
        raise UsageError(
            f"this FluxTransformer2DModel reads {given} channels and predicts {made}: "
            "it edits an image that it is given, which diffcompress does not support",
            "take a text-to-image teacher, such as FLUX.1 [dev] or [schnell]",
        )


def _shape(config: Config) -> tuple[int, ...]:
    return (config["in_channels"] // 4, SIDE, SIDE)


def _inputs(config: Config, batch: int) -> dict[str, Tensor]:
    guidance = {"guidance": torch.full((batch,), GUIDANCE)} if _guided(config) else {}
    return {
        "encoder_hidden_states": torch.zeros(batch, TEXT_TOKENS, config["joint_attention_dim"]),
        "pooled_projections": torch.zeros(batch, config["pooled_projection_dim"]),
        **guidance,
    }


def _tiny() -> dict[str, Any]:
    return {
        "patch_size": 1,
        "in_channels": 16,
        "num_layers": 2,
        "num_single_layers": 3,
        "attention_head_dim": 16,
        "num_attention_heads": 3,
        "joint_attention_dim": 12,
        "pooled_projection_dim": 10,
        "guidance_embeds": True,
        "axes_dims_rope": [4, 4, 8],
    }


FAMILY = Transformer(
    class_name="FluxTransformer2DModel",
    pipelines=("FluxPipeline",),
    stacks=STACKS,
    size=_size,
    resized=_resized,
    rules=_rules,
    forward=_forward,
    shape=_shape,
    inputs=_inputs,
    tiny=_tiny,
    text=lambda config: (*TEXT, "guidance") if _guided(config) else TEXT,
    head_sizes=lambda config: rotary_sizes(_axes(config)),
    rotary=True,
    check=_check,
    patch=lambda _config: 2,  # the pipeline packs squares of four positions
    feature_output=1,
    call_options={"guidance_scale": GUIDANCE},
)
