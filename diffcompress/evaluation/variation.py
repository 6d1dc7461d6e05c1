"""How much neighbouring pixels of a sample differ: little in images, much in noise."""

from __future__ import annotations

import torch
from torch import Tensor


def total_variation(images: Tensor) -> Tensor:
    """`[N]`: mean absolute difference of neighbours in `[N, C, *spatial]`; infinite where a sample is not finite."""
    parts = [
        images.diff(dim=axis).abs().flatten(1).mean(1) for axis in range(2, images.dim()) if images.shape[axis] > 1
    ]
    variation = torch.stack(parts).mean(0)
    finite = torch.isfinite(images).flatten(1).all(1)
    return torch.where(finite, variation, torch.inf)
