"""A tiny ZImagePipeline: untrained, no weight zero."""

from __future__ import annotations

from typing import cast

from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
from transformers import AutoTokenizer

from diffcompress.families import z_image
from tests.families.test_contract import lively
from tests.families.tiny_text import qwen3_encoder, qwen_tokenizer, seeded


def pipeline() -> ZImagePipeline:
    """Images of 32 x 32 pixels, latents of 16 x 16: the most that its rotary embedding has room for."""
    config = z_image.FAMILY.tiny_config()
    vae = {
        "block_out_channels": (4, 4),
        "latent_channels": config["in_channels"],
        "norm_num_groups": 2,
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "shift_factor": 0.1,
    }
    return ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=seeded(lambda: AutoencoderKL(**vae)),
        text_encoder=qwen3_encoder(config["cap_feat_dim"]),
        tokenizer=cast(AutoTokenizer, qwen_tokenizer()),  # the hint is of what finds a class
        transformer=lively(ZImageTransformer2DModel.from_config(config)),
    )
