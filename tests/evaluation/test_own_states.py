"""Agreement along the way of sampling, against a walk by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from diffcompress.evaluation import correction
from diffcompress.evaluation.doubts import drifts
from diffcompress.evaluation.own_states import along_the_way
from diffcompress.noise import generator, streams
from diffcompress.pipeline.load import LoadedPipeline, load
from diffcompress.records.evaluation import Metrics
from diffcompress.records.metrics import Estimate, Metric
from diffcompress.records.protocol import Protocol
from diffcompress.runtime import Runtime
from diffcompress.sources.resolve import resolve
from tests import tiny
from tests.evaluation.models import one_of


@pytest.fixture
def teacher(tmp_path: Path) -> LoadedPipeline:
    return load(resolve(str(tiny.save_pipeline(tmp_path / "teacher", seed=0))))


def halved(teacher: LoadedPipeline) -> LoadedPipeline:
    """The teacher with half of every prediction."""
    timestep, slope = teacher.noise.grid(3)[:, 0], torch.full((3, 1), 0.5)
    return correction.corrected(teacher, correction.Correction(timestep, slope, torch.zeros(3, 1)))


def protocol(steps: int) -> Protocol:
    return Protocol(feature_space=None, sampler="ddim", sampler_steps=steps, num_samples=4, seed=5)


@pytest.mark.parametrize("own", [True, False])
def test_errors_are_those_of_a_walk_by_hand(teacher: LoadedPipeline, own: bool) -> None:
    told = protocol(3)
    student = halved(teacher)
    found = along_the_way(student, teacher, told, 4, own=own)
    noisy = torch.stack(
        [torch.randn(1, 8, 8, generator=generator(told.sampling_seed, streams.NOISE, i)) for i in range(4)]
    )
    grid, ratios = teacher.noise.grid(3, torch.zeros(4)), []
    for place in range(3):
        timestep = grid[place]
        following = grid[place + 1] if place < 2 else torch.full_like(timestep, -1)
        with torch.no_grad():
            theirs = teacher.predict(noisy, timestep, {})
        ratios.append((theirs / 2).square().flatten(1).mean(1) / theirs.var(correction=0))
        taken = theirs / 2 if own else theirs
        noisy = teacher.noise.step(taken, noisy, timestep, following, 0.0, torch.zeros_like(noisy))
    torch.testing.assert_close(found.float(), torch.stack(ratios).mean(0))


@pytest.mark.parametrize("own", [True, False])
def test_processes_that_draw_a_part_each_find_what_one_does(teacher: LoadedPipeline, own: bool) -> None:
    """Whatever is drawn at once: more processes than samples, too."""
    student, told, given = halved(teacher), protocol(3), []
    for place in range(5):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Runtime, "total", lambda _self, value: given.append(value) or value)
            along_the_way(student, teacher, told, 4, own=own, runtime=one_of(place, 5))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Runtime, "total", lambda _self, _value: sum(part for part in given if part.numel()))
        found = along_the_way(student, teacher, told, 4, own=own, runtime=one_of(0, 5))
    torch.testing.assert_close(found, along_the_way(student, teacher, told, 4, own=own), rtol=1e-6, atol=0)


def test_guided_samples_are_judged_at_both_calls_of_a_step(tmp_path: Path) -> None:
    dit = load(resolve(str(tiny.save_dit(tmp_path / "dit"))))
    told = protocol(3).model_copy(update={"guidance": 2.0})
    timestep, slope = dit.noise.grid(3)[:, 0], torch.full((3, dit.sample_shape[0]), 0.5)
    student = correction.corrected(dit, correction.Correction(timestep, slope, torch.zeros_like(slope)))
    for own in (True, False):
        found = along_the_way(student, dit, told, 4, own=own)
        assert found.shape == (4,)
        assert 0.2 < found.mean() < 2


def test_a_student_like_its_teacher_errs_nowhere(teacher: LoadedPipeline) -> None:
    for own in (True, False):
        assert along_the_way(teacher, teacher, protocol(2), 4, own=own).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("own", "theirs", "told"), [(0.88, 0.94, True), (0.935, 0.94, False), (0.95, 0.94, False), (0.91, 0.925, False)]
)
def test_the_light_goes_on_where_own_states_are_surely_worse(own: float, theirs: float, told: bool) -> None:
    metrics = Metrics(not_computed=[])
    for name, value in (("agreement_own_states", own), ("agreement_teacher_states", theirs)):
        metrics.add(Metric.named(name), {"student": Estimate(value, value - 0.01, value + 0.01)})
    found = drifts(metrics)
    assert bool(found) == told
    if told:
        assert "its error is 2 times that on its teacher's" in found[0]
