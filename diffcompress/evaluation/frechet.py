"""Distances between sets of features in float64: Frechet (two Gaussians), kernel (unbiased, Binkowski et al. 2018)."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from diffcompress.errors import UsageError
from diffcompress.noise import generator, streams
from diffcompress.records.metrics import Estimate

RESAMPLES = 100
MOST_EXACT_DIMENSIONS = 256
BLOCK = 1024


@dataclass(frozen=True)
class Moments:
    """mean `[D]` and covariance `[D, D]` of features, float64."""

    mean: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Moments:
        """The moments of features `[N, D]`; the covariance is the unbiased one."""
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
    moments, root = Moments.of(features), _square_root(reference.covariance)
    if dimension > MOST_EXACT_DIMENSIONS:
        return resampled_around(*_influence(features, moments, reference, root), seed)
    value = _frechet(moments, reference, root)
    resampled = (Moments.of(features[picks]) for picks in _resamples(count, seed))
    draws = torch.stack([_frechet(one, reference, root) for one in resampled])
    # Resampling repeats some samples, which raises all draws alike; only their spread is laid around the value.
    return _around(value, draws, floor=0.0)


def kernel_distance(features: Tensor, reference: Tensor, *, seed: int = 0, paired: bool = False) -> Estimate:
    """Unbiased squared maximum mean discrepancy of `[N, D]` to `[M, D]`, kernel (x.y / D + 1)^3; may fall below 0.

    paired: row i of both comes from the same noise, so M is N, pairs (i, i) say nothing and both are resampled as one.
    """
    x, y = features.double(), reference.double()
    # Row r of `weights`: how often resample r holds each sample. Pairs of a sample with itself are left out everywhere.
    picks = torch.stack(_resamples(len(x), seed))
    weights = torch.zeros(len(picks) + 1, len(x), dtype=torch.float64)
    weights[0] = 1.0
    weights[1:].scatter_add_(1, picks, torch.ones_like(picks, dtype=torch.float64))
    total = weights.sum(1)
    num_pairs = total**2 - (weights**2).sum(1)
    within = _pairs(x, x, weights) / num_pairs
    if paired:
        values = within + (_pairs(y, y, weights) - 2 * _pairs(x, y, weights)) / num_pairs
    else:
        once = torch.ones(1, len(y), dtype=torch.float64)
        to_reference = torch.cat([_kernel(part, y).mean(1) for part in x.split(BLOCK)])
        values = within + _pairs(y, y, once) / (len(y) * (len(y) - 1)) - 2 * (weights @ to_reference) / total
    return _around(values[0], values[1:])


def mean_estimate(values: Tensor, *, seed: int = 0) -> Estimate:
    """Mean of one value per sample `[N]`, resampled over samples."""
    values = values.double()
    return _around(values.mean(), torch.stack([values[picks].mean() for picks in _resamples(len(values), seed)]))


def share_estimate(hits: Tensor) -> Estimate:
    """Share of True in `[N]` with Wilson's interval, which has a width at 0 and 1 too, where no resample differs."""
    count, share = len(hits), hits.double().mean().item()
    z = 1.959964
    centre, spread = share + z * z / (2 * count), z * sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return Estimate(share, max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale))


def resampled_around(value: Tensor, influence: Tensor, seed: int) -> Estimate:
    """A distance, and the spread of it that resampling gives by what each sample has to do with it `[N]`."""
    return _around(value, torch.stack([influence[picks].mean() for picks in _resamples(len(influence), seed)]), 0.0)


def _resamples(count: int, seed: int) -> list[Tensor]:
    stream = generator(seed, streams.BOOTSTRAP)
    return [torch.randint(count, (count,), generator=stream) for _ in range(RESAMPLES)]


def _around(value: Tensor, draws: Tensor, floor: float = -torch.inf) -> Estimate:
    low, high = torch.quantile(draws - draws.mean() + value, torch.tensor(_quantiles(len(draws))).double()).tolist()
    return Estimate(value.item(), max(low, floor), max(high, floor))


def _quantiles(count: int) -> list[float]:
    """Where the middle 95 % ends of what `count` draws are drawn from: torch's own ends are too near."""
    return [(share * (count + 1) - 1) / (count - 1) for share in (0.025, 0.975)]


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _pairs(x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """Sum over i != j of w_i k(x_i, y_j) w_j for each row w of `weights`; in blocks, as N x N may not fit."""
    found = torch.zeros(len(weights), dtype=torch.float64)
    for start in range(0, len(x), BLOCK):
        rows = slice(start, start + BLOCK)
        kernel = _kernel(x[rows], y)
        kernel.diagonal(start).zero_()
        found += ((weights @ kernel.T) * weights[:, rows]).sum(1)
    return found


def _influence(features: Tensor, moments: Moments, reference: Moments, root: Tensor) -> tuple[Tensor, Tensor]:
    """The distance and each sample's influence on it `[N]` (its derivative by the sample's weight).

    One matrix decomposition in place of one for each resample, which would take minutes in 2,048 dimensions.
    d tr (R S R)^(1/2) / dS = R (R S R)^(-1/2) R / 2, on the subspace that the samples span.
    """
    values, vectors = torch.linalg.eigh(root @ moments.covariance @ root)
    values = values.clamp(min=0)
    spanned = values > values.max() * 1e-10
    inverse = torch.where(spanned, values, torch.inf).rsqrt()
    slopes = root @ (vectors * inverse) @ vectors.T @ root
    shift = moments.mean - reference.mean
    centred = features - moments.mean
    trace = moments.covariance.trace() + reference.covariance.trace() - 2 * values.sqrt().sum()
    by_sample = 2 * centred @ shift + centred.square().sum(1) - ((centred @ slopes) * centred).sum(1)
    return (shift.square().sum() + trace).clamp(min=0), by_sample


def _square_root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def _frechet(moments: Moments, reference: Moments, reference_root: Tensor) -> Tensor:
    # The eigenvalues of S S' are those of R S R with R R = S', which is symmetric: exact and real.
    mixed = torch.linalg.eigvalsh(reference_root @ moments.covariance @ reference_root).clamp(min=0).sqrt().sum()
    apart = (moments.mean - reference.mean).square().sum()
    return (apart + moments.covariance.trace() + reference.covariance.trace() - 2 * mixed).clamp(min=0)
