"""A tiny AuraFlowPipeline: untrained, no weight zero."""

from __future__ import annotations

from diffusers import AuraFlowPipeline, AuraFlowTransformer2DModel, AutoencoderKL, FlowMatchEulerDiscreteScheduler

from diffcompress.families import auraflow
from tests.families.test_contract import lively
from tests.families.tiny_text import seeded, t5_tokenizer, umt5_encoder


def pipeline() -> AuraFlowPipeline:
    """Latents of at most 8 x 8, a VAE of factor 2; it makes 1024 x 1024 pixels unless asked for fewer."""
    config = auraflow.FAMILY.tiny_config()
    vae = {
        "block_out_channels": (4, 4),
        "latent_channels": config["in_channels"],
        "norm_num_groups": 2,
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
    }
    return AuraFlowPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=umt5_encoder(config["joint_attention_dim"]),
        vae=seeded(lambda: AutoencoderKL(**vae)),
        transformer=lively(AuraFlowTransformer2DModel.from_config(config)),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.73),
    )
