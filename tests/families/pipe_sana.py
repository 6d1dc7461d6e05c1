"""A tiny SanaPipeline: untrained, no weight zero."""

from __future__ import annotations

from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaPipeline, SanaTransformer2DModel

from diffcompress.families import sana
from tests.families.test_contract import lively
from tests.families.tiny_text import gemma2_encoder, gemma_tokenizer, seeded


def pipeline() -> SanaPipeline:
    """Latents of height / 4 x width / 4; sizes are multiples of 32."""
    config = sana.FAMILY.tiny_config() | {"timestep_scale": 0.5}
    vae = {
        "latent_channels": config["in_channels"],
        "attention_head_dim": 2,
        "encoder_block_out_channels": (4, 8, 8),
        "decoder_block_out_channels": (4, 8, 8),
        "encoder_layers_per_block": (1, 1, 1),
        "decoder_layers_per_block": (1, 1, 1),
        "encoder_qkv_multiscales": ((), (), ()),
        "decoder_qkv_multiscales": ((), (), ()),
    }
    return SanaPipeline(
        tokenizer=gemma_tokenizer(),
        text_encoder=gemma2_encoder(config["caption_channels"]),
        vae=seeded(lambda: AutoencoderDC(**vae)),
        transformer=lively(SanaTransformer2DModel.from_config(config)),
        scheduler=DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
    )
