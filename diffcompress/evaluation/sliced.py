"""Sliced Wasserstein distances in a feature space, as the Monge Inception Distance scales them.

Berthet et al. 2026, arXiv 2605.06797: 3 D x the mean, over 1,000 random directions, of the squared 2-Wasserstein
distance of what the features of equally many images are along that direction, which sorting gives. It estimates no
covariance, so it needs no more samples in more dimensions, and sees what two moments do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from diffcompress.evaluation.frechet import resampled_around
from diffcompress.evaluation.material import Material
from diffcompress.noise import generator, streams
from diffcompress.records.evaluation import Metrics
from diffcompress.records.metrics import KINDS, Estimate, Metric

NUM_DIRECTIONS = 1000
SCALE = 3.0  # of D times the mean
BLOCK = 100
# In Inception's features it bears its name, from as many samples on as its authors call informative.
FEWEST_FOR_MIND = 1000


def add_metrics(material: Material, wanted: Sequence[Metric], metrics: Metrics) -> None:
    """Sliced distances of samples to real images, and to the teacher's samples of the same noise."""
    for metric in wanted:
        seed, real = material.protocol.seed, material.in_space.real
        if metric.kind.to == "teacher":
            theirs, named, (sets, more) = material.features["teacher"], metric, material.to_teacher()
        else:
            assert real is not None
            theirs, (sets, more) = real.features, material.to_real(real)
            named = called(metric, min(material.protocol.num_samples, len(theirs)))
        distance = partial(_distance, reference=theirs, seed=seed, paired=metric.kind.to == "teacher")
        found = {role: distance(value) for role, value in sets.items()}
        metrics.add(named, found, as_many=material.as_many(sets, distance), **more)


def _distance(features: Tensor, reference: Tensor, seed: int, paired: bool) -> Estimate:
    """With pairs the first of the reference, where features are fewer."""
    return sliced_distance(features, reference[: len(features)] if paired else reference, seed=seed, paired=paired)


def called(metric: Metric, num_samples: int) -> Metric:
    """`mind` for what the word means: Inception's features of enough samples; otherwise swd_<space>."""
    is_mind = metric == Metric(KINDS["swd"], "inception") and num_samples >= FEWEST_FOR_MIND
    return Metric(KINDS["mind"]) if is_mind else metric


def sliced_distance(features: Tensor, reference: Tensor, *, seed: int = 0, paired: bool = False) -> Estimate:
    """Of features `[N, D]` to `[M, D]`, in squared feature units, >= 0; of the larger set as many as the smaller has.

    The interval resamples the first-order influence of each sample. paired: row i of both comes from the same noise, so
    M is N, and both are resampled as one; else `reference` stays as it is.
    """
    x, y = (_some(one.double(), min(len(features), len(reference)), seed) for one in (features, reference))
    value, influence = torch.zeros((), dtype=torch.float64), torch.zeros(len(x), dtype=torch.float64)
    for block in directions(x.shape[1], seed).split(BLOCK):
        (ours, order), (theirs, their_order) = (torch.sort(one @ block.T, dim=0) for one in (x, y))
        value += (ours - theirs).square().mean(0).sum()
        influence += _potential(ours, theirs).gather(0, order.argsort(0)).sum(1)
        if paired:
            influence += _potential(theirs, ours).gather(0, their_order.argsort(0)).sum(1)
    scale = SCALE * x.shape[1] / NUM_DIRECTIONS
    return resampled_around(scale * value, scale * influence, seed)


def directions(dimension: int, seed: int) -> Tensor:
    """Unit vectors `[NUM_DIRECTIONS, D]` of a seed, spread evenly."""
    drawn = torch.randn(NUM_DIRECTIONS, dimension, generator=generator(seed, streams.DIRECTIONS), dtype=torch.float64)
    return drawn / drawn.norm(dim=1, keepdim=True)


def _some(features: Tensor, count: int, seed: int) -> Tensor:
    """Drawn, as the user's images may lie in an order of their own."""
    if len(features) == count:
        return features
    return features[torch.randperm(len(features), generator=generator(seed, streams.SUBSET))[:count]]


def _potential(ours: Tensor, theirs: Tensor) -> Tensor:
    """Of each sample on a line, sorted `[N, B]`: the derivative of the squared distance by its weight.

    Up to a constant. Kantorovich's potential: its slope is 2 (x - T(x)), with T the map of one sorted set to the other.
    """
    apart = ours - theirs
    steps = (ours[1:] - ours[:-1]) * (apart[1:] + apart[:-1])
    return torch.cat([torch.zeros_like(apart[:1]), steps.cumsum(0)])
