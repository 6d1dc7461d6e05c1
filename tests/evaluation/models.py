"""Tiny real diffusers pipelines on disk, for the evaluation's tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from diffcompress.teacher.load import LoadedPipeline, load
from diffcompress.teacher.reference import resolve


def save(folder: Path, *, seed: int = 0, scale: float = 1.0, size: int = 28, width: int = 8, **scheduler: Any) -> Path:
    """A DDPM pipeline of random weights; its predictions are `scale` times those that `seed` gives."""
    torch.manual_seed(seed)
    denoiser = UNet2DModel(
        sample_size=size,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(width, width),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=2,
    )
    with torch.no_grad():
        denoiser.conv_out.weight.mul_(scale * 10)
        denoiser.conv_out.bias.mul_(scale * 10)
    DDPMPipeline(denoiser, DDPMScheduler(num_train_timesteps=100, **scheduler)).save_pretrained(folder)
    return folder


def loaded(folder: Path, **values: Any) -> LoadedPipeline:
    return load(resolve(str(save(folder, **values))))
