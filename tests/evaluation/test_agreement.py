"""Agreement on tiny real U-Nets whose true answer is known."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from diffcompress.evaluation import agreement
from diffcompress.evaluation.agreement import why_incomparable
from diffcompress.noise import generator, streams
from diffcompress.runtime import Runtime
from tests.evaluation import models
from tests.evaluation.models import one_of


def measure(student, teacher, clean, **values):
    return agreement.measure({"student": student}, teacher, clean, {}, **values)["student"]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return models.loaded(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def clean():
    return torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)


@pytest.mark.parametrize("count", [1, 3, 10])
def test_processes_predict_a_part_each(teacher, clean, count):
    given, timestep = [], torch.arange(8)
    whole = agreement.predictions(teacher, clean, timestep, {}, 2)
    for place in range(count):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Runtime, "total", lambda _self, value: given.append(value) or value)
            agreement.predictions(teacher, clean, timestep, {}, 2, one_of(place, count))
    torch.testing.assert_close(sum(given), whole, rtol=1e-6, atol=1e-6)
    assert sum(int(part.flatten(1).any(1).sum()) for part in given) == 8


def test_a_model_agrees_with_itself(teacher, clean):
    found = measure(teacher, teacher, clean, num_levels=10, seed=0)
    assert found.agreement == (1.0, 1.0, 1.0)
    for level in found.levels:
        assert (level.error, level.relative_error, level.slope, level.intercept) == (0, 0, 1, 0)


def test_half_the_prediction_has_slope_two(tmp_path, teacher, clean):
    """Half the teacher: the line has slope 2, the error is a quarter of the teacher's square."""
    found = measure(models.loaded(tmp_path, scale=0.5), teacher, clean, num_levels=10, seed=0)
    for level in found.levels:
        assert level.slope == pytest.approx(2, rel=1e-5)
        assert level.intercept == pytest.approx(0, abs=1e-5)
        assert level.relative_error == pytest.approx(0.5, rel=1e-5)
    assert 0.4 < found.agreement.value <= 0.75  # 0.75 where the prediction's mean is 0
    assert found.agreement.low < found.agreement.value < found.agreement.high < 1


def test_a_constant_offset_is_the_intercept(tmp_path, teacher, clean):
    shifted = models.loaded(tmp_path)
    with torch.no_grad():
        shifted.denoiser.conv_out.bias += 0.25
    found = measure(shifted, teacher, clean, num_levels=4, seed=0)
    for level in found.levels:
        assert level.intercept == pytest.approx(-0.25, rel=1e-3)
        assert level.error == pytest.approx(0.0625, rel=1e-4)


def test_agreement_equals_loops(tmp_path, teacher, clean):
    """1 - mean over levels of error / variance, from inputs noised one by one."""
    student = models.loaded(tmp_path, seed=2)
    ratios = []
    for level in range(4):
        ours, theirs = [], []
        for i, image in enumerate(clean):
            stream = generator(7, streams.AGREEMENT, level, i)
            share = torch.rand((), generator=stream, dtype=torch.float64).item()
            timestep = torch.tensor([int(25 * (level + share))])
            noise = torch.randn(1, 1, 8, 8, generator=stream)
            alpha = teacher.noise.alphas_cumprod[timestep].item()
            noisy = alpha**0.5 * image[None] + (1 - alpha) ** 0.5 * noise
            ours.append(student.denoiser(noisy.float(), timestep).sample.double())
            theirs.append(teacher.denoiser(noisy.float(), timestep).sample.double())
        one, other = torch.cat(ours), torch.cat(theirs)
        ratios.append(((one - other) ** 2).mean() / other.var(correction=0))
    found = measure(student, teacher, clean, num_levels=4, seed=7)
    assert found.agreement.value == pytest.approx(1 - float(sum(ratios)) / 4, rel=1e-4)


def test_another_model_disagrees(tmp_path, teacher, clean):
    assert measure(models.loaded(tmp_path, seed=1), teacher, clean, num_levels=5, seed=0).agreement.value < 0.1


def test_levels_tile_the_timesteps_and_inputs_follow_from_the_seed(tmp_path, teacher, clean):
    student = models.loaded(tmp_path, seed=1)
    found = measure(student, teacher, clean, num_levels=10, seed=0)
    edges = [(level.timestep_low, level.timestep_high) for level in found.levels]
    assert edges == [(10 * i, 10 * i + 9) for i in range(10)]
    assert measure(student, teacher, clean, num_levels=10, seed=0, batch_size=5).agreement.value == pytest.approx(
        found.agreement.value, rel=1e-5
    )
    assert measure(student, teacher, clean, num_levels=10, seed=1).agreement.value != found.agreement.value


def test_what_cannot_be_compared(teacher):
    schedule = replace(teacher, noise=replace(teacher.noise, alphas_cumprod=teacher.noise.alphas_cumprod**2))
    assert why_incomparable(schedule, teacher) == "student and teacher have different noise schedules"
    assert why_incomparable(teacher, teacher) is None
