"""Tiny Stable Diffusion 3 pipelines: untrained, no weight zero."""

from __future__ import annotations

from typing import Any

from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)

from diffcompress.families import sd3
from tests.families.test_contract import lively
from tests.families.tiny_text import clip_text, clip_tokenizer, seeded, t5_encoder, t5_tokenizer


def pipeline(**changes: Any) -> StableDiffusion3Pipeline:
    """As Stable Diffusion 3.5 medium: images of 16 x 16 pixels, latents of 8 x 8. changes: to its denoiser's config."""
    return StableDiffusion3Pipeline(**_parts(**changes))


def medium() -> StableDiffusion3Pipeline:
    """As Stable Diffusion 3 medium: no second attention, queries and keys as they are."""
    return StableDiffusion3Pipeline(**_parts(dual_attention_layers=(), qk_norm=None))


def _parts(**changes: Any) -> dict[str, Any]:
    config = sd3.FAMILY.tiny_config() | changes
    pooled = config["pooled_projection_dim"]
    vae = {
        "block_out_channels": (4, 4),
        "latent_channels": config["in_channels"],
        "norm_num_groups": 2,
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "shift_factor": 0.1,
    }
    return {
        "text_encoder": clip_text(4, projection=4),
        "tokenizer": clip_tokenizer(),
        "text_encoder_2": clip_text(8, projection=pooled - 4, seed=1),
        "tokenizer_2": clip_tokenizer(),
        "text_encoder_3": t5_encoder(config["joint_attention_dim"]),
        "tokenizer_3": t5_tokenizer(),
        "vae": seeded(lambda: AutoencoderKL(**vae)),
        "transformer": lively(SD3Transformer2DModel.from_config(config)),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
    }
