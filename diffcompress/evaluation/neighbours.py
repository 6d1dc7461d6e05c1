"""Fidelity and diversity from nearest neighbours in a feature space, each in [0, 1] but density, which has no top.

precision, recall: Kynkaanniemi et al. 2019, arXiv 1904.06991, with their 3 neighbours; density, coverage: Naeem et al.
2020, arXiv 2002.09797, with their 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diffcompress.evaluation.frechet import mean_estimate, share_estimate
from diffcompress.evaluation.material import Material
from diffcompress.records.evaluation import Metrics
from diffcompress.records.metrics import Estimate, Metric

PRECISION_NEIGHBOURS = 3
DENSITY_NEIGHBOURS = 5
FEWEST = 2 * DENSITY_NEIGHBOURS
BLOCK = 1024


def add_metrics(material: Material, wanted: Sequence[Metric], metrics: Metrics) -> None:
    """Of as many real images as samples: with unequal counts, precision and recall drift apart by themselves."""
    protocol, real = material.protocol, material.in_space.real
    assert real is not None
    count = min(len(real.features), protocol.num_samples)
    if count < FEWEST:
        why = f"{count} images are too few for nearest neighbours: it takes {FEWEST} or more"
        metrics.skip((metric.name for metric in wanted), why)
        return
    found = {
        role: neighbour_metrics(value[:count], real.features[:count], seed=protocol.seed)
        for role, value in (material.others("corrected") | material.floor(real)).items()
        if len(value) >= count
    }
    more: dict[str, Any] = {"samples": count, "reference": real.name, "real_samples": count}
    for metric in wanted:
        name = metric.kind.name
        neighbours = PRECISION_NEIGHBOURS if name in ("precision", "recall") else DENSITY_NEIGHBOURS
        metrics.add(metric, {role: one[name] for role, one in found.items()}, **more, neighbours=neighbours)


def neighbour_metrics(features: Tensor, real: Tensor, *, seed: int = 0) -> dict[str, Estimate]:
    """precision, recall, density and coverage of `features` `[N, D]` against `real` `[M, D]`; N = M compares best.

    Intervals are over samples for precision and density, over real images for recall and coverage. Raises ValueError
    for fewer than `FEWEST` rows.
    """
    if min(len(features), len(real)) < FEWEST:
        raise ValueError(f"{min(len(features), len(real))} rows are too few for neighbours: {FEWEST} or more")
    features, real = features.double(), real.double()
    around_sample = _radii(features, PRECISION_NEIGHBOURS)
    around_real, around_real_5 = _radii(real, PRECISION_NEIGHBOURS), _radii(real, DENSITY_NEIGHBOURS)
    recalled = torch.zeros(len(real), dtype=torch.bool)
    covered = torch.zeros(len(real), dtype=torch.bool)
    precise, dense = [], []
    for part, radius in zip(features.split(BLOCK), around_sample.split(BLOCK), strict=True):
        distance = torch.cdist(part, real)
        precise.append((distance <= around_real).any(1))
        dense.append((distance < around_real_5).double().sum(1) / DENSITY_NEIGHBOURS)
        recalled |= (distance <= radius[:, None]).any(0)
        covered |= (distance < around_real_5).any(0)
    density = mean_estimate(torch.cat(dense), seed=seed)
    found = {"precision": share_estimate(torch.cat(precise)), "recall": share_estimate(recalled)}
    found |= {"density": density._replace(low=max(density.low, 0.0)), "coverage": share_estimate(covered)}
    return found


def _radii(features: Tensor, neighbours: int) -> Tensor:
    """`[N]`: distance of each row to its `neighbours`-th nearest other row."""
    # One more than asked for, as each row is its own nearest.
    parts = [torch.cdist(part, features).kthvalue(neighbours + 1, dim=1).values for part in features.split(BLOCK)]
    return torch.cat(parts)
