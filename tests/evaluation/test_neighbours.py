"""Precision, recall, density and coverage against loops, and against sets whose answer is known."""

from __future__ import annotations

import pytest
import torch

from diffcompress.evaluation import neighbours
from diffcompress.evaluation.neighbours import neighbour_metrics


def draw(count, seed, shift=0.0, spread=1.0, dimension=6):
    return spread * torch.randn(count, dimension, generator=torch.Generator().manual_seed(seed)) + shift


def by_loops(fake, real):
    def radius(rows, i, k):
        return sorted((rows[i] - other).norm().item() for other in rows)[k]

    def near(a, b, limit):
        return (a - b).norm().item() <= limit * (1 + 1e-9)

    n, m = range(len(fake)), range(len(real))
    r3, r5, f3 = [radius(real, i, 3) for i in m], [radius(real, i, 5) for i in m], [radius(fake, j, 3) for j in n]
    return {
        "precision": sum(any(near(fake[j], real[i], r3[i]) for i in m) for j in n) / len(fake),
        "recall": sum(any(near(fake[j], real[i], f3[j]) for j in n) for i in m) / len(real),
        "density": sum(near(fake[j], real[i], r5[i]) for i in m for j in n) / (5 * len(fake)),
        "coverage": sum(any(near(fake[j], real[i], r5[i]) for j in n) for i in m) / len(real),
    }


@pytest.mark.parametrize(("shift", "spread"), [(0.0, 1.0), (0.8, 0.5), (0.0, 3.0)])
def test_equals_loops(shift, spread, monkeypatch):
    monkeypatch.setattr(neighbours, "BLOCK", 16)
    fake, real = draw(40, 1, shift, spread).double(), draw(30, 2).double()
    found = neighbour_metrics(fake, real)
    for name, expected in by_loops(fake, real).items():
        assert found[name].value == pytest.approx(expected), name
        assert 0 <= found[name].low <= found[name].value <= found[name].high


def test_equal_distributions_and_what_is_wrong_with_others():
    real = draw(400, 3)
    same = {name: one.value for name, one in neighbour_metrics(draw(400, 4), real).items()}
    assert same["precision"] > 0.6 and same["recall"] > 0.6
    assert same["density"] == pytest.approx(1, abs=0.15) and same["coverage"] > 0.9
    collapsed = {name: one.value for name, one in neighbour_metrics(draw(400, 4, spread=0.1), real).items()}
    assert collapsed["precision"] > 0.9 and collapsed["recall"] < 0.1 and collapsed["coverage"] < 0.2
    far = neighbour_metrics(draw(400, 4, shift=9.0), real)
    assert all(one.value == 0 for one in far.values())
    # 400 without a single hit leave room for a true share of about one percent.
    assert all(far[name].high == pytest.approx(0.0095, abs=1e-4) for name in ("precision", "recall", "coverage"))


def test_too_few_rows():
    with pytest.raises(ValueError, match="9 rows are too few"):
        neighbour_metrics(draw(9, 1), draw(20, 2))
