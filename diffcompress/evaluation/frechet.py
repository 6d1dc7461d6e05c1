"""Distances between sets of features in float64: Frechet (two Gaussians), kernel (unbiased, Binkowski et al. 2018)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from diffcompress.errors import UsageError
from diffcompress.noise import generator

RESAMPLES = 100
BOOTSTRAP_STREAM = 302


class Estimate(NamedTuple):
    """A value and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Moments:
    """mean `[D]` and covariance `[D, D]` of features, float64."""

    mean: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Moments:
        """Of features `[N, D]`; the covariance is the unbiased one."""
        features = features.double()
        mean = features.mean(0)
        centred = features - mean
        return cls(mean, centred.T @ centred / (len(features) - 1))


def frechet_distance(features: Tensor, reference: Moments, *, seed: int = 0) -> Estimate:
    """|m - m'|^2 + tr(S + S' - 2 (S S')^(1/2)) of features `[N, D]` to `reference`, in squared feature units, >= 0.

    Raises UsageError when N < 2 D: the covariance of so few samples makes the distance meaningless.
    """
    count, dimension = features.shape
    if count < 2 * dimension:
        raise UsageError(
            f"{count} samples are too few for a Frechet distance of {dimension} features, which takes at least "
            f"{2 * dimension}",
            f"use --num-samples {2 * dimension} or more",
        )
    features = features.double()
    root = _square_root(reference.covariance)
    value = _frechet(Moments.of(features), reference, root)
    draws = torch.stack([_frechet(Moments.of(features[picks]), reference, root) for picks in _resamples(count, seed)])
    # Resampling repeats some samples, which raises all draws alike; only their spread is laid around the value.
    return _around(value, draws, floor=0.0)


def kernel_distance(features: Tensor, reference: Tensor, *, seed: int = 0) -> Estimate:
    """Unbiased squared maximum mean discrepancy of `[N, D]` to `[M, D]`, kernel (x.y / D + 1)^3; may fall below 0."""
    x, y = features.double(), reference.double()
    dimension = x.shape[1]
    within, cross = (x @ x.T / dimension + 1) ** 3, (x @ y.T / dimension + 1) ** 3
    among = (y @ y.T / dimension + 1) ** 3
    own = (among.sum() - among.diagonal().sum()) / (len(y) * (len(y) - 1))
    to_reference, diagonal = cross.mean(1), within.diagonal()
    # Row r of `weights`: how often resample r holds each sample. Pairs of a sample with itself are left out everywhere.
    picks = torch.stack(_resamples(len(x), seed))
    weights = torch.zeros(len(picks) + 1, len(x), dtype=torch.float64)
    weights[0] = 1.0
    weights[1:].scatter_add_(1, picks, torch.ones_like(picks, dtype=torch.float64))
    pairs = ((weights @ within) * weights).sum(1) - (weights**2) @ diagonal
    num_pairs = weights.sum(1) ** 2 - (weights**2).sum(1)
    values = pairs / num_pairs + own - 2 * (weights @ to_reference) / weights.sum(1)
    return _around(values[0], values[1:])


def mean_estimate(values: Tensor, *, seed: int = 0) -> Estimate:
    """Mean of one value per sample `[N]`, resampled over samples."""
    values = values.double()
    return _around(values.mean(), torch.stack([values[picks].mean() for picks in _resamples(len(values), seed)]))


def _resamples(count: int, seed: int) -> list[Tensor]:
    stream = generator(seed, BOOTSTRAP_STREAM)
    return [torch.randint(count, (count,), generator=stream) for _ in range(RESAMPLES)]


def _around(value: Tensor, draws: Tensor, floor: float = -torch.inf) -> Estimate:
    low, high = torch.quantile(draws - draws.mean() + value, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Estimate(value.item(), max(low, floor), max(high, floor))


def _square_root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def _frechet(moments: Moments, reference: Moments, reference_root: Tensor) -> Tensor:
    # The eigenvalues of S S' are those of R S R with R R = S', which is symmetric: exact and real.
    mixed = torch.linalg.eigvalsh(reference_root @ moments.covariance @ reference_root).clamp(min=0).sqrt().sum()
    apart = (moments.mean - reference.mean).square().sum()
    return (apart + moments.covariance.trace() + reference.covariance.trace() - 2 * mixed).clamp(min=0)
