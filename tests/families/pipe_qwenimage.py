"""A tiny QwenImagePipeline: untrained, no weight zero."""

from __future__ import annotations

from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)

from diffcompress.families import qwenimage
from tests.families.test_contract import lively
from tests.families.tiny_text import qwen_tokenizer, qwen_vl_encoder, seeded


def pipeline() -> QwenImagePipeline:
    """Latents of 128 x 128 and images of 256 x 256 unless asked for others."""
    config = qwenimage.FAMILY.tiny_config()
    channels = config["in_channels"] // 4
    vae = {
        "base_dim": 4,
        "z_dim": channels,
        "dim_mult": [1, 1],
        "num_res_blocks": 1,
        "temperal_downsample": [False],
        "latents_mean": [0.0] * channels,
        "latents_std": [1.0] * channels,
    }
    return QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=seeded(lambda: AutoencoderKLQwenImage(**vae)),
        text_encoder=qwen_vl_encoder(config["joint_attention_dim"]),
        tokenizer=qwen_tokenizer(),
        transformer=lively(QwenImageTransformer2DModel.from_config(config)),
    )
