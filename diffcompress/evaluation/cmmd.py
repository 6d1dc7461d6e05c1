"""CMMD: kernel distance of CLIP embeddings with a Gaussian kernel, Jayasumana et al. 2024, arXiv 2401.09603.

With the published kernel (sigma 10) and scale (1,000), and their estimator, which counts each sample with itself: it
compares with published figures of the same CLIP (openai/clip-vit-large-patch14-336) and as many samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from diffcompress.evaluation.frechet import BLOCK, resampled_around
from diffcompress.evaluation.material import Material
from diffcompress.records.evaluation import Metrics
from diffcompress.records.metrics import Estimate, Metric

SIGMA, SCALE = 10.0, 1000.0


def add_metrics(material: Material, wanted: Sequence[Metric], metrics: Metrics) -> None:
    """CMMD of every role's samples to real images."""
    real, seed = material.in_space.real, material.protocol.seed
    assert real is not None
    sets, more = material.to_real(real)
    distance = partial(cmmd, reference=real.features, seed=seed)
    found = {role: distance(value) for role, value in sets.items()}
    for metric in wanted:
        metrics.add(metric, found, as_many=material.as_many(sets, distance), **more)


def cmmd(features: Tensor, reference: Tensor, *, seed: int = 0) -> Estimate:
    """Of embeddings of length 1, `[N, D]` to `[M, D]`, >= 0. The interval resamples the influence of each sample."""
    x, y = features.double(), reference.double()
    to_ours, to_theirs = _means(x, x), _means(x, y)
    value = to_ours.mean() + _means(y, y).mean() - 2 * to_theirs.mean()
    return resampled_around(SCALE * value, SCALE * 2 * (to_ours - to_theirs), seed)


def _means(x: Tensor, y: Tensor) -> Tensor:
    """Of each of x `[N, D]` the mean kernel to all of y; in blocks, as N x M may not fit."""
    parts = [torch.exp(-torch.cdist(part, y).square() / (2 * SIGMA**2)).mean(1) for part in x.split(BLOCK)]
    return torch.cat(parts)
