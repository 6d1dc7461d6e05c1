"""A tiny LDMPipeline as CompVis/ldm-celebahq-256 is made: untrained, no weight zero."""

from __future__ import annotations

from typing import Any

from diffusers import DDIMScheduler, LDMPipeline, UNet2DModel, VQModel

from tests.families.test_contract import lively
from tests.families.tiny_text import seeded

UNET: dict[str, Any] = {
    "_class_name": "UNet2DModel",
    "sample_size": 8,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": [16, 32, 48],
    "layers_per_block": 2,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": 8,
    "norm_num_groups": 4,
}


def pipeline() -> LDMPipeline:
    """Images of 16 x 16 from latents of 8 x 8, which are quantized before they are decoded."""
    autoencoder: dict[str, Any] = {
        "latent_channels": 3,
        "block_out_channels": (4, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "norm_num_groups": 2,
        "num_vq_embeddings": 16,
        "sample_size": 16,
    }
    return LDMPipeline(
        vqvae=seeded(lambda: VQModel(**autoencoder)),
        unet=lively(UNet2DModel.from_config(UNET)),
        scheduler=DDIMScheduler(beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear", clip_sample=False),
    )
