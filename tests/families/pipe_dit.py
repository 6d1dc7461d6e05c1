"""A tiny DiTPipeline: untrained, no weight zero."""

from __future__ import annotations

from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

from diffcompress.families import dit
from tests.families.test_contract import lively
from tests.families.tiny_text import seeded

# The pipeline takes 1000 for the label that stands for none.
CLASSES = 1000


def pipeline(num_classes: int = CLASSES) -> DiTPipeline:
    """Images of 16 x 16 pixels, latents of 8 x 8."""
    config = dit.FAMILY.tiny_config() | {"num_embeds_ada_norm": num_classes}
    vae = {"block_out_channels": (4, 4), "latent_channels": config["in_channels"], "norm_num_groups": 2}
    types = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    return DiTPipeline(
        transformer=lively(DiTTransformer2DModel.from_config(config)),
        vae=seeded(lambda: AutoencoderKL(**vae, **types)),
        scheduler=DDIMScheduler(),
    )
