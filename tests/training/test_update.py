"""The wiring of a step: gradients are clipped, the rate runs over all stages, the average follows the weights."""

from __future__ import annotations

import math

import pytest
import torch

from diffcompress.recipe import LossWeights, StageSection
from diffcompress.training.ema import Ema
from diffcompress.training.stage import run_stage, update
from tests.training.tiny_job import job, rows

STAGES = (
    StageSection(name="first", num_steps=6, weights=LossWeights(lift=1.0)),
    StageSection(name="second", num_steps=9, weights=LossWeights(place=1.0)),
)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("max_grad_norm", [1e-3, 1e3])
def test_gradients_are_clipped_before_they_are_taken(world, tmp_path, optimizer, max_grad_norm):
    """Seen in the first moments, which after one step are the gradients, times 1 - beta1 for AdamW."""
    work = job(world, tmp_path, optimizer=optimizer, max_grad_norm=max_grad_norm)
    terms, finite = update(work, work.recipe.stages[0], 0, work.targets.batch(0))
    assert finite
    found = work.state.optimizer.tensors().items()
    parts = [value / (1 - 0.9) for name, value in found if name.endswith(".exp_avg")]
    parts += [value for name, value in found if name.endswith(".moment")]
    assert len(parts) == len(work.state.optimizer.parameters)
    taken = torch.stack([part.norm() for part in parts]).norm().item()
    told = terms["grad_norm"].item()  # before clipping
    assert 1e-3 < told < 1e3
    assert taken == pytest.approx(min(told, max_grad_norm), rel=1e-3)


def test_the_rate_runs_once_over_all_stages(world, tmp_path):
    """Warm-up at the start of the first stage alone, and a cosine that ends with the last."""
    work = job(world, tmp_path, stages=STAGES, warmup_steps=3, learning_rate=0.02)
    found = []
    for index, stage in enumerate(STAGES):
        run_stage(work, index, tmp_path / stage.name)
        found += rows(tmp_path / stage.name)
    assert [row["step"] for row in found] == list(range(15))
    assert [row["stage"] for row in found] == ["first"] * 6 + ["second"] * 9
    expected = [0.02 * min(1, (n + 1) / 3) * (1 + math.cos(math.pi * max(0, n - 3) / 12)) / 2 for n in range(15)]
    assert [row["learning_rate"] for row in found] == pytest.approx(expected, abs=1e-6)


def test_moments_and_average_go_on_in_the_next_stage(world, tmp_path):
    work = job(world, tmp_path, stages=STAGES)
    run_stage(work, 0, tmp_path / "first")
    moments = {name: value.clone() for name, value in work.state.optimizer.tensors().items()}
    average = {name: value.clone() for name, value in work.state.ema.tensors.items()}
    update(work, STAGES[1], 6, work.targets.batch(6))
    steps = [value.item() for name, value in work.state.optimizer.tensors().items() if name.endswith(".step")]
    assert steps and set(steps) == {7.0}
    moved = [name for name, value in work.state.optimizer.tensors().items() if not torch.equal(value, moments[name])]
    assert moved == list(moments)
    weights = work.state.model.state_dict()
    for name, value in work.state.ema.tensors.items():  # decay after step 6: 7 / 16, below 2^(-1 / 5)
        torch.testing.assert_close(value, 7 / 16 * average[name] + 9 / 16 * weights[name])


@pytest.mark.parametrize("half_life", [3.0, 1e6, 0.0])
def test_the_average_is_over_a_tenth_of_the_steps_until_its_half_life_is_shorter(half_life):
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(model.weight, 0.0)
    ema, expected = Ema(model, half_life), 0.0
    for step in range(40):
        torch.nn.init.constant_(model.weight, float(step + 1))
        ema.update(step)
        decay = min(2 ** (-1 / half_life) if half_life else 0.0, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * (step + 1)
        assert ema.tensors["weight"].item() == pytest.approx(expected, rel=1e-5)


def test_integers_are_not_averaged():
    model = torch.nn.BatchNorm1d(2)
    ema = Ema(model, 10)
    model.num_batches_tracked += 7
    ema.update(0)
    assert ema.tensors["num_batches_tracked"].item() == 7
