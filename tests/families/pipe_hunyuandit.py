"""A tiny HunyuanDiTPipeline: untrained, no weight zero."""

from __future__ import annotations

from diffusers import AutoencoderKL, DDPMScheduler, HunyuanDiT2DModel, HunyuanDiTPipeline

from diffcompress.families import hunyuandit
from tests.families.test_contract import lively
from tests.families.tiny_text import bert_encoder, bert_tokenizer, seeded, t5_encoder, t5_tokenizer


def pipeline(*, told: bool = False) -> HunyuanDiTPipeline:
    """Images of 64 x 64 pixels, latents of 8 x 8. told: as before version 1.2, the transformer is told sizes."""
    # The pipeline always asks for so many tokens, and for latents of an eighth of the image.
    lengths = {"text_len": 77, "text_len_t5": 256}
    config = hunyuandit.FAMILY.tiny_config() | lengths | {"use_style_cond_and_image_meta_size": told}
    vae = {"block_out_channels": (4, 4, 4, 4), "latent_channels": config["in_channels"], "norm_num_groups": 2}
    types = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    return HunyuanDiTPipeline(
        vae=seeded(lambda: AutoencoderKL(**vae, **types)),
        text_encoder=bert_encoder(config["cross_attention_dim"]),
        tokenizer=bert_tokenizer(),
        text_encoder_2=t5_encoder(config["cross_attention_dim_t5"]),
        tokenizer_2=t5_tokenizer(256),
        transformer=lively(HunyuanDiT2DModel.from_config(config)),
        scheduler=DDPMScheduler(prediction_type="v_prediction"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
