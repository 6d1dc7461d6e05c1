"""Frechet and kernel distances against torchmetrics and against loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torchmetrics.image.fid import _compute_fid

from diffcompress.errors import UsageError
from diffcompress.evaluation import frechet
from diffcompress.evaluation.frechet import Moments, frechet_distance, kernel_distance, mean_estimate


def features(count: int, seed: int, shift: float = 0.0, spread: float = 1.0, dimension: int = 16) -> torch.Tensor:
    stream = torch.Generator().manual_seed(seed)
    mix = torch.randn(dimension, dimension, generator=torch.Generator().manual_seed(99))
    return spread * torch.randn(count, dimension, generator=stream) @ mix + shift


@pytest.mark.parametrize(("shift", "spread"), [(0.0, 1.0), (0.5, 1.0), (0.0, 2.0), (1.5, 0.3)])
def test_equals_torchmetrics(shift, spread):
    ours, reference = features(400, 1, shift, spread), Moments.of(features(500, 2))
    moments = Moments.of(ours)
    expected = _compute_fid(moments.mean, moments.covariance, reference.mean, reference.covariance).item()
    assert frechet_distance(ours, reference).value == pytest.approx(expected, abs=1e-3, rel=1e-3)


def test_moments_are_those_of_torch():
    values = features(50, 3)
    assert torch.allclose(Moments.of(values).covariance, torch.cov(values.double().T))


def test_a_set_has_no_distance_to_itself_even_with_a_dead_feature():
    values = features(100, 4)
    values[:, 3] = 0
    assert frechet_distance(values, Moments.of(values)).value == pytest.approx(0, abs=1e-8)


def test_intervals_hold_the_value_and_follow_from_the_seed():
    ours, reference = features(200, 5, 0.2), features(300, 6)
    pairs: Any = ((frechet_distance, Moments.of(reference)), (kernel_distance, reference))
    for distance, to in pairs:
        found = distance(ours, to)
        assert found.low < found.value < found.high
        assert distance(ours, to) == found
        assert distance(ours, to, seed=1) != found


def test_the_interval_is_as_wide_as_fresh_sets_scatter():
    reference = Moments.of(features(5000, 7))
    values = torch.tensor([frechet_distance(features(300, 100 + i, 1.0), reference).value for i in range(12)])
    found = frechet_distance(features(300, 99, 1.0), reference)
    assert 0.4 < (found.high - found.low) / (4 * values.std().item()) < 3


def test_the_interval_holds_95_percent_of_what_resamples_are_drawn_from():
    stream = torch.Generator().manual_seed(0)
    draws = torch.rand(500, frechet.RESAMPLES, generator=stream, dtype=torch.float64)
    found = [frechet._around(torch.tensor(0.0), some) for some in draws]
    assert sum(one.high - one.low for one in found) / len(found) == pytest.approx(0.95, abs=0.005)


def test_in_many_dimensions_influences_replace_resampled_distances(monkeypatch):
    for spread, shift in ((1.0, 0.5), (0.7, 0.0), (1.0, 0.0)):
        values, reference = features(600, 20, shift, spread), Moments.of(features(800, 21))
        values[:, 3] = 0
        exact = frechet_distance(values, reference)
        with monkeypatch.context() as patch:
            patch.setattr(frechet, "MOST_EXACT_DIMENSIONS", 8)
            quick = frechet_distance(values, reference)
        assert quick.value == pytest.approx(exact.value, rel=1e-6)
        assert quick.high - quick.low == pytest.approx(exact.high - exact.low, rel=0.4)


def test_too_few_samples_for_a_frechet_distance_are_refused():
    with pytest.raises(UsageError, match=r"31 samples are too few .* 16 features.* at least 32"):
        frechet_distance(features(31, 8), Moments.of(features(100, 9)))


def test_kernel_distance_equals_loops():
    x, y = features(7, 10, dimension=3).double(), features(5, 11, 0.5, dimension=3).double()

    def kernel(a, b):
        return float((a @ b / 3 + 1) ** 3)

    within = sum(kernel(x[i], x[j]) for i in range(7) for j in range(7) if i != j) / 42
    among = sum(kernel(y[i], y[j]) for i in range(5) for j in range(5) if i != j) / 20
    cross = sum(kernel(a, b) for a in x for b in y) / 35
    assert kernel_distance(x, y).value == pytest.approx(within + among - 2 * cross)


def test_kernel_distance_equals_torchmetrics():
    """On the same features; torchmetrics' kernel inception distance of one subset with all of them."""
    from torchmetrics.image.kid import poly_mmd

    x, y = features(300, 12), features(300, 13, 0.5)
    assert kernel_distance(x, y).value == pytest.approx(poly_mmd(x.double(), y.double()).item(), rel=1e-3)


def test_paired_kernel_distance(monkeypatch):
    """The same sets have no distance at all; pairs (i, i) are left out; blocks change nothing."""
    x, y = features(40, 14, dimension=3).double(), features(40, 15, 0.3, dimension=3).double()
    assert kernel_distance(x, x, paired=True) == (0, 0, 0)
    pairs = [(i, j) for i in range(40) for j in range(40) if i != j]

    def kernel(a, b):
        return float((a @ b / 3 + 1) ** 3)

    parts = [kernel(x[i], x[j]) + kernel(y[i], y[j]) - kernel(x[i], y[j]) - kernel(x[j], y[i]) for i, j in pairs]
    found = kernel_distance(x, y, paired=True)
    assert found.value == pytest.approx(sum(parts) / len(parts))
    monkeypatch.setattr(frechet, "BLOCK", 7)
    assert kernel_distance(x, y, paired=True) == pytest.approx(found)


def test_kernel_distance_of_equal_distributions_averages_to_zero():
    values = torch.tensor(
        [
            kernel_distance(features(60, 2 * i, dimension=4), features(60, 2 * i + 1, dimension=4)).value
            for i in range(40)
        ]
    )
    far = kernel_distance(features(60, 1, 2.0, dimension=4), features(60, 2, dimension=4)).value
    assert abs(values.mean()) < 3 * values.std() / 40**0.5
    assert far > 5 * values.std()


def test_mean_estimate():
    values = torch.arange(100.0)
    found = mean_estimate(values)
    assert found.value == 49.5
    assert 2 < found.value - found.low < 10
