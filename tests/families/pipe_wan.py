"""A tiny WanPipeline: untrained, no weight zero."""

from __future__ import annotations

from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel

from diffcompress.families import wan
from tests.families.test_contract import lively
from tests.families.tiny_text import seeded, t5_tokenizer, umt5_encoder


def pipeline() -> WanPipeline:
    """Videos of 17 frames of 80 x 80 pixels, the most that its rotary embedding has room for."""
    config = wan.FAMILY.tiny_config()
    vae = {
        "base_dim": 4,
        "z_dim": config["in_channels"],
        "dim_mult": [1, 1, 1, 1],
        "num_res_blocks": 1,
        "latents_mean": [0.1, -0.2],
        "latents_std": [1.5, 2.0],
    }
    return WanPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=umt5_encoder(config["text_dim"]),
        vae=seeded(lambda: AutoencoderKLWan(**vae)),
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
        transformer=lively(WanTransformer3DModel.from_config(config)),
    )
