"""A tiny StableDiffusionXLPipeline: untrained, no weight zero."""

from __future__ import annotations

from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel

from diffcompress.families import unet2d_condition
from tests.families.pipe_stable_diffusion import autoencoder
from tests.families.test_contract import lively
from tests.families.tiny_text import clip_text, clip_tokenizer


def pipeline() -> StableDiffusionXLPipeline:
    """Latents of height / 2 x width / 2."""
    config = unet2d_condition.FAMILY.tiny_config() | {"in_channels": 4, "out_channels": 4}
    pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
    return StableDiffusionXLPipeline(
        vae=autoencoder(),
        text_encoder=clip_text(4),
        text_encoder_2=clip_text(config["cross_attention_dim"] - 4, projection=pooled, seed=1),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=lively(UNet2DConditionModel.from_config(config)),
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
        ),
        add_watermarker=False,
    )
