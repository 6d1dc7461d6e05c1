"""A tiny Lumina2Pipeline: untrained, no weight zero."""

from __future__ import annotations

from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, Lumina2Pipeline, Lumina2Transformer2DModel

from diffcompress.families import lumina2
from tests.families.test_contract import lively
from tests.families.tiny_text import gemma2_encoder, gemma_tokenizer, seeded


def pipeline() -> Lumina2Pipeline:
    """Images of 64 x 64 pixels, latents of 8 x 8: the pipeline's factor is always 8."""
    config = lumina2.FAMILY.tiny_config()
    vae = {
        "block_out_channels": (4, 4, 4, 4),
        "latent_channels": config["in_channels"],
        "norm_num_groups": 2,
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "shift_factor": 0.1,
    }
    return Lumina2Pipeline(
        transformer=lively(Lumina2Transformer2DModel.from_config(config)),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0),
        vae=seeded(lambda: AutoencoderKL(**vae)),
        text_encoder=gemma2_encoder(config["cap_feat_dim"]),
        tokenizer=gemma_tokenizer(),
    )
