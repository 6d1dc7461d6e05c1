"""Failed samples: a collapsed student leaves noise where an image should be, and noise has a huge total variation."""

from __future__ import annotations

import torch
from torch import Tensor

from diffcompress.evaluation.frechet import share_estimate
from diffcompress.records.metrics import Estimate

QUANTILE = 0.999


def total_variation(images: Tensor) -> Tensor:
    """`[N]`: mean absolute difference of neighbours in `[N, C, *spatial]`; infinite where a sample is not finite."""
    parts = [
        images.diff(dim=axis).abs().flatten(1).mean(1) for axis in range(2, images.dim()) if images.shape[axis] > 1
    ]
    variation = torch.stack(parts).mean(0)
    finite = torch.isfinite(images).flatten(1).all(1)
    return torch.where(finite, variation, torch.inf)


def failed_share(variation: Tensor, teacher_variation: Tensor) -> Estimate:
    """Share of samples above the teacher's 99.9th percentile."""
    return share_estimate(variation.double() > torch.quantile(teacher_variation.double(), QUANTILE))
