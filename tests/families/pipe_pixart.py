"""Tiny PixArt pipelines: untrained, no weight zero."""

from __future__ import annotations

from typing import Any

from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
)

from diffcompress.families import pixart
from tests.families.test_contract import lively
from tests.families.tiny_text import seeded, t5_encoder, t5_tokenizer


def pipeline() -> PixArtSigmaPipeline:
    """Images of 16 x 16 pixels, latents of 8 x 8."""
    return PixArtSigmaPipeline(**_parts(use_additional_conditions=False))


def alpha_1024() -> PixArtAlphaPipeline:
    """Latents of 128 x 128 unless asked for others; the transformer is told the image's size."""
    return PixArtAlphaPipeline(**_parts(sample_size=128, use_additional_conditions=None))


def _parts(**changes: Any) -> dict[str, Any]:
    config = pixart.FAMILY.tiny_config() | changes
    vae = {"block_out_channels": (4, 4), "latent_channels": config["in_channels"], "norm_num_groups": 2}
    types = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    return {
        "tokenizer": t5_tokenizer(),
        "text_encoder": t5_encoder(config["caption_channels"]),
        "vae": seeded(lambda: AutoencoderKL(**vae, **types)),
        "transformer": lively(PixArtTransformer2DModel.from_config(config)),
        "scheduler": DPMSolverMultistepScheduler(),
    }
