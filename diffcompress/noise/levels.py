"""Noise levels spread by how much noise there is, where timesteps spread evenly dwell on levels that teach little."""

from __future__ import annotations

import torch
from torch import Tensor

from diffcompress.noise.process import Columns, NoiseProcess

# Half a stretch of the process over which the noise's share is taken to rise evenly.
REACH = 1 / 128
FINENESS = 1024


def noise_share(noise: NoiseProcess, timestep: Columns) -> Tensor:
    """sigma / (signal + sigma) `[N]`, from 0 (clean) to 1: what flow matching calls time."""
    signal, sigma = noise.signal_and_noise(timestep, torch.empty(len(timestep), 1, dtype=torch.float64))
    return (sigma / (signal + sigma)).flatten()


def weights(noise: NoiseProcess, timestep: Columns) -> Tensor:
    """How often calls at these timesteps `[N]`, as sampling spreads them, are to be taken so that the square of the
    noise's share is spread evenly; only ratios count."""
    reach = max(REACH, 1 / noise.num_timesteps)
    share = noise.share_of(timestep)
    below, above = (share - reach).clamp(min=0), (share + reach).clamp(max=1)
    rise = _height(noise, noise.at(above)) - _height(noise, noise.at(below))
    return (rise / (above - below)).clamp(min=1e-9)


def spread(noise: NoiseProcess, timestep: Columns) -> Columns:
    """Timesteps `[N]` whose squared noise shares are spread as evenly as the given ones are over the process."""
    grid = torch.linspace(0, 1, FINENESS + 1, dtype=torch.float64)
    heights = _height(noise, noise.at(grid))
    wanted = heights[0] + noise.share_of(timestep) * (heights[-1] - heights[0])
    return noise.at(grid[torch.searchsorted(heights, wanted).clamp(max=FINENESS)])


def _height(noise: NoiseProcess, timestep: Columns) -> Tensor:
    return noise_share(noise, timestep).square()
