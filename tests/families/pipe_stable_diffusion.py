"""A tiny StableDiffusionPipeline as 1.5 is made: untrained, no weight zero."""

from __future__ import annotations

from typing import Any

from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel

from tests.families.test_contract import lively
from tests.families.tiny_text import clip_text, clip_tokenizer, seeded

# One number of heads for all levels, projections by convolutions, no transformer layers to spare.
UNET: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [16, 32, 32],
    "layers_per_block": 2,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "attention_head_dim": 2,
    "cross_attention_dim": 8,
    "norm_num_groups": 4,
}


def autoencoder() -> AutoencoderKL:
    """Latents of height / 2 x width / 2, 4 channels."""
    config: dict[str, Any] = {
        "latent_channels": 4,
        "block_out_channels": (4, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "norm_num_groups": 2,
        "sample_size": 16,
        "force_upcast": False,
    }
    return seeded(lambda: AutoencoderKL(**config))


def pipeline() -> StableDiffusionPipeline:
    return StableDiffusionPipeline(
        vae=autoencoder(),
        text_encoder=clip_text(UNET["cross_attention_dim"]),
        tokenizer=clip_tokenizer(),
        unet=lively(UNet2DConditionModel.from_config(UNET)),
        scheduler=PNDMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
