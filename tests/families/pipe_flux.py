"""Tiny Flux pipelines: untrained, no weight zero."""

from __future__ import annotations

from typing import Any

from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

from diffcompress.families import flux
from tests.families.test_contract import lively
from tests.families.tiny_text import clip_text, clip_tokenizer, seeded, t5_encoder, t5_tokenizer


def pipeline(**changes: Any) -> FluxPipeline:
    """As FLUX.1 [dev], which is told a guidance; latents are 128 x 128, images 256 x 256, unless asked for others.

    changes: to its denoiser's config.
    """
    return FluxPipeline(**_parts(**changes))


def schnell() -> FluxPipeline:
    """As FLUX.1 [schnell]: no guidance at all."""
    return FluxPipeline(**_parts(guidance_embeds=False))


def _parts(**changes: Any) -> dict[str, Any]:
    config = flux.FAMILY.tiny_config() | changes
    vae = {
        "block_out_channels": (4, 4),
        "latent_channels": config["in_channels"] // 4,
        "norm_num_groups": 2,
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "shift_factor": 0.1,
    }
    return {
        "text_encoder": clip_text(config["pooled_projection_dim"]),
        "tokenizer": clip_tokenizer(),
        "text_encoder_2": t5_encoder(config["joint_attention_dim"]),
        "tokenizer_2": t5_tokenizer(),
        "vae": seeded(lambda: AutoencoderKL(**vae)),
        "transformer": lively(FluxTransformer2DModel.from_config(config)),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=config["guidance_embeds"]),
    }
