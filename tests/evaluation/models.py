"""Tiny real pipelines whose predictions can be told apart by a factor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMPipeline, DDPMScheduler

from diffcompress.pipeline.load import LoadedPipeline, load
from diffcompress.runtime import Runtime, StopRequest, start
from diffcompress.sources.resolve import resolve
from tests import tiny


def save(folder: Path, *, seed: int = 0, scale: float = 1.0, size: int = 8, **scheduler: Any) -> Path:
    """A DDPM pipeline of random weights; its predictions are `scale` times those that `seed` gives."""
    blocks: dict[str, Any] = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    denoiser = tiny.unet(seed=seed, sample_size=size, block_out_channels=(4, 8), norm_num_groups=2, **blocks)
    with torch.no_grad():
        denoiser.conv_out.weight.mul_(scale)
        denoiser.conv_out.bias.mul_(scale)
    DDPMPipeline(denoiser, DDPMScheduler(num_train_timesteps=100, **scheduler)).save_pretrained(folder)
    return folder


def loaded(folder: Path, **values: Any) -> LoadedPipeline:
    return load(resolve(str(save(folder, **values))))


class _OneOf(Runtime):
    """One of several processes, which waits for nobody."""

    place, together = 0, 1
    index = property(lambda self: self.place)
    count = property(lambda self: self.together)
    is_main = property(lambda self: self.place == 0)

    def wait(self) -> None:
        pass

    def _most(self, number: int) -> int:
        return number


def one_of(place: int, together: int) -> Runtime:
    found = _OneOf(start("cpu").accelerator, StopRequest())
    found.place, found.together = place, together
    return found
