"""Sliced Wasserstein distance and CMMD against independent computations."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from diffcompress.evaluation.cmmd import cmmd
from diffcompress.evaluation.sliced import called, directions, sliced_distance
from diffcompress.records.metrics import KINDS, Metric
from tests.evaluation.test_frechet import features


def test_sliced_distance_is_the_cheapest_assignment_along_each_direction() -> None:
    """Of all orders of six samples, by trying each."""
    x, y = features(6, 1, dimension=3).double().numpy(), features(6, 2, 0.7, dimension=3).double().numpy()
    costs = []
    for direction in directions(3, seed=0).numpy()[:1000]:
        a, b = x @ direction, y @ direction
        costs.append(min(np.mean((a - b[list(order)]) ** 2) for order in itertools.permutations(range(6))))
    assert sliced_distance(torch.from_numpy(x), torch.from_numpy(y)).value == pytest.approx(3 * 3 * np.mean(costs))


def test_sliced_distance_of_a_shift_is_three_times_its_square() -> None:
    """The mean over directions of (u v)^2 is |v|^2 / D, whatever the distribution."""
    values, shift = features(400, 3), torch.linspace(-1, 1, 16)
    found = sliced_distance(values + shift, values, seed=4)
    assert found.value == pytest.approx(3 * shift.square().sum().item(), rel=0.1)
    assert sliced_distance(values, values) == (0, 0, 0)


@pytest.mark.parametrize("distance", [sliced_distance, cmmd])
def test_the_interval_is_as_wide_as_fresh_sets_scatter(distance) -> None:
    def drawn(seed: int) -> Tensor:
        values = features(300, seed, 0.5)
        return values / values.norm(dim=1, keepdim=True) if distance is cmmd else values

    reference = drawn(7) if distance is sliced_distance else -drawn(7)
    values = torch.tensor([distance(drawn(100 + i), reference).value for i in range(12)])
    found = distance(drawn(99), reference)
    assert 0.4 < (found.high - found.low) / (4 * values.std().item()) < 3
    assert found.low < found.value < found.high


def test_of_the_larger_set_as_many_are_taken_and_pairs_are_resampled_as_one() -> None:
    few, many = features(50, 5), features(300, 6)
    assert sliced_distance(few, many).value == pytest.approx(sliced_distance(many, few).value)
    close = few + 0.01 * features(50, 8)
    alone, paired = sliced_distance(close, few), sliced_distance(close, few, paired=True)
    assert paired.value == alone.value
    assert paired.high - paired.low < alone.high - alone.low


def test_mind_is_what_the_word_means() -> None:
    inception = Metric(KINDS["swd"], "inception")
    assert called(inception, 1000).name == "mind"
    assert called(inception, 999).name == "swd_inception"
    assert called(Metric(KINDS["swd"], "demo"), 5000).name == "swd_demo"


def test_cmmd_equals_loops_with_the_published_kernel() -> None:
    x, y = (features(count, count, dimension=5).double() for count in (7, 9))
    x, y = x / x.norm(dim=1, keepdim=True), y / y.norm(dim=1, keepdim=True)

    def mean(a: Tensor, b: Tensor) -> float:
        pairs = [np.exp(-sum((p - q) ** 2) / 200) for p in a.numpy() for q in b.numpy()]
        return float(np.mean(pairs))

    expected = 1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y))
    assert expected > 0.01
    assert cmmd(x, y).value == pytest.approx(expected, rel=1e-6)
    assert cmmd(x, x).value == pytest.approx(0, abs=1e-9)
