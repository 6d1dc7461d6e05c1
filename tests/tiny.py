"""Tiny real diffusers teachers for tests: built, and if asked saved, in milliseconds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMPipeline, DDPMScheduler, DiTTransformer2DModel, UNet2DModel

from diffcompress.families import registry
from diffcompress.families.base import complete

UNET = complete(
    "UNet2DModel",
    {
        "sample_size": 8,
        "in_channels": 1,
        "out_channels": 1,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 8,
        "norm_num_groups": 4,
    },
)
# The embedded demo teacher's shape: 1.5 M parameters.
DEMO: dict[str, Any] = {
    **UNET,
    "sample_size": 28,
    "block_out_channels": (24, 48, 96),
    "down_block_types": ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    "attention_head_dim": 16,
    "norm_num_groups": 8,
}

# Overrides of the shortest run that passes through every step of `shrink`.
SHORTEST = (
    "bank.num_samples=4",
    "bank.num_prompts=3",
    "bank.sampler_steps=2",
    "targets.pool_size=8",
    "stages.0.num_steps=2",
    "stages.1.num_steps=2",
    "training.batch_size=2",
    "training.warmup_steps=1",
    "evaluation.num_samples=2",
    "evaluation.sampler_steps=2",
)


def unet(config: Mapping[str, Any] = UNET, seed: int = 0, **changes: Any) -> UNet2DModel:
    """An untrained U-Net in evaluation mode; its weights follow from `seed`. Every tensor is random, biases too."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = UNet2DModel.from_config({**config, **changes}).eval()
        for name, value in model.named_parameters():
            if value.dim() == 1:
                torch.nn.init.normal_(value, mean=1.0 if "norm" in name and "weight" in name else 0.0, std=0.2)
    return model.requires_grad_(False)


def save_pipeline(
    folder: Path,
    *,
    prediction_type: str = "epsilon",
    num_classes: int | None = None,
    dtype: torch.dtype = torch.float32,
    variant: str | None = None,
    seed: int = 0,
    num_train_timesteps: int | None = 1000,
    **changes: Any,
) -> Path:
    """A DDPMPipeline folder with a tiny untrained U-Net; `changes` go to the U-Net's config."""
    model = torch.nn.Module.to(unet(UNET, seed, **({"num_class_embeds": num_classes} | changes)), dtype)
    scheduler = DDPMScheduler(num_train_timesteps=num_train_timesteps or 1000, prediction_type=prediction_type)
    DDPMPipeline(model, scheduler).save_pretrained(folder, variant=variant)
    return folder


def save_denoiser(folder: Path, **changes: Any) -> Path:
    """The U-Net folder alone, without a scheduler beside it."""
    unet(UNET, **changes).save_pretrained(folder)
    return folder


def save_dit(folder: Path) -> Path:
    """A DiT's folder, with a scheduler beside it: five classes, a null class, a learned variance."""
    config = registry.find("DiTTransformer2DModel").tiny_config()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        denoiser = DiTTransformer2DModel.from_config(config)
        for value in denoiser.parameters():
            value.data = 0.2 * torch.randn(value.shape)
    denoiser.save_pretrained(folder / "transformer")
    DDPMScheduler().save_pretrained(folder / "scheduler")
    return folder / "transformer"
