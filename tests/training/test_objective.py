"""What a step computes: each term and its weight against a computation by hand."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from diffcompress.losses.step import term_of
from diffcompress.recipe import LossWeights, StageSection
from diffcompress.training.objective import FeatureTap, step_losses
from tests.losses.test_lift_place import oracle
from tests.training.tiny_job import job

# LIFT and PLACE as the oracle has them by default, with the gate that never shuts: both terms count.
PLAIN = {"norm": "l1", "fine": "squared", "gate": "soft", "group_size": 16, "feature_norm": "squared"}
CASES = [
    {"lift": 1.0},
    {"place": 2.0},
    {"output_kd": 0.7},
    {"diffusion": 0.3},
    {"feature_kd": 1.5},
    {"variance_kd": 3.0, "output_kd": 1.0},
    {"variance_kd": 0.0, "output_kd": 1.0},
    {"place": 0.9, "diffusion": 0.1, "feature_kd": 0.01, "variance_kd": 0.9},
    {"lift": 1.0, "output_kd": 0.2, "diffusion": 0.4, "feature_kd": 0.5, "variance_kd": 2.0},
]


@pytest.fixture(scope="module", params=["unet", "dit"])
def worked(request, world, dit_world, tmp_path_factory):
    """A job, one of its batches, and what student and teacher say to it."""
    where = world if request.param == "unet" else dit_world
    work = job(where, tmp_path_factory.mktemp("job"), weights={"output_kd": 1.0, "feature_kd": 1.0})
    batch = work.targets.batch(0)
    with torch.no_grad():
        whole, features = work.trainee(batch.noisy, batch.timestep, batch.conditioning)
        with FeatureTap(work.teacher.denoiser, work.teacher.family) as tap:
            work.teacher.predict_all(batch.noisy, batch.timestep, batch.conditioning)
    return work, batch, whole.numpy(), [(s.numpy(), t.numpy()) for s, t in zip(features, tap.features, strict=True)]


def by_hand(weights, batch, whole, features, reduction):
    """Each weighted term, from the equations."""
    channels = batch.noisy.shape[1]
    ours, theirs = whole[:, :channels], batch.prediction.numpy()[:, :channels]

    def square(one, other):
        error = ((one - other) ** 2).reshape(len(one), -1)
        return float((error.sum(1) if reduction == "sum" else error.mean(1)).mean())

    def fitted(group_size):
        return oracle(ours, theirs, group_size, gate="soft", reduction=reduction)[0]

    found = {
        "lift": lambda: fitted(ours[0, 0].size),
        "place": lambda: fitted(16),
        "output_kd": lambda: square(ours, theirs),
        "diffusion": lambda: square(ours, batch.diffusion_target.numpy()),
        "feature_kd": lambda: sum(square(s, t) for s, t in features),
        "variance_kd": lambda: square(whole[:, channels:], batch.prediction.numpy()[:, channels:]),
    }
    return {name: weight * found[name]() for name, weight in weights.items() if weight > 0}


@pytest.mark.parametrize("weights", CASES, ids=lambda weights: "+".join(weights))
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_total_is_the_weighted_sum_of_its_terms(worked, weights, reduction):
    work, batch, whole, features = worked
    varies = whole.shape[1] > batch.noisy.shape[1]
    stage = StageSection(name="one", num_steps=1, weights=LossWeights(**weights), reduction=reduction, **PLAIN)
    total, log = step_losses(work.trainee, work.teacher, batch, stage, lambda value: value)
    asked = {"variance_kd": 1.0} | weights  # its default weight is 1
    expected = by_hand(asked if varies else asked | {"variance_kd": 0.0}, batch, whole, features, reduction)
    assert total.item() == pytest.approx(sum(expected.values()), rel=1e-4)
    assert log["loss"].item() == total.item()
    for name in {"output_kd", "diffusion", "feature_kd", "variance_kd"} & set(log):
        assert asked[name] * log[name].item() == pytest.approx(expected[name], rel=1e-4)
    assert ("variance_kd" in log) == (varies and asked["variance_kd"] > 0)


def test_the_teacher_and_the_batch_get_no_gradient(worked):
    work, batch, _, _ = worked
    batch = replace(batch, prediction=batch.prediction.clone().requires_grad_())
    weights = LossWeights(place=1.0, output_kd=1.0, diffusion=1.0, feature_kd=1.0)
    stage = StageSection(name="one", num_steps=1, weights=weights)
    work.trainee.zero_grad()
    step_losses(work.trainee, work.teacher, batch, stage, lambda value: value)[0].backward()
    assert batch.prediction.grad is None
    assert all(parameter.grad is None for parameter in work.teacher.denoiser.parameters())
    assert all(parameter.grad is not None for parameter in work.trainee.parameters())


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("norm", "squared"),
        ("fine", "l1"),
        ("gate", "per_sample"),
        ("coarse_weight", 0.0),
        ("group_size", 8),
        ("power", 0.5),
    ],
)
def test_every_option_of_a_stage_reaches_its_loss(worked, option, value):
    work, batch, _, _ = worked
    found = []
    for options in (PLAIN, PLAIN | {option: value}):
        stage = StageSection(name="one", num_steps=1, weights=LossWeights(place=1.0, variance_kd=0.0), **options)
        found.append(step_losses(work.trainee, work.teacher, batch, stage, lambda value: value)[0].item())
    assert found[0] != pytest.approx(found[1], rel=1e-3)


def test_the_gate_is_that_of_all_processes(worked):
    """`reduce_mean` is handed on to LIFT and PLACE: a second process that is far off closes this one's gate."""
    work, batch, _, _ = worked
    for name in ("lift", "place"):
        stage = StageSection(name="one", num_steps=1, weights=LossWeights(**{name: 1.0}), **PLAIN)
        alone, far = (
            step_losses(work.trainee, work.teacher, batch, stage, partial(torch.add, other=off))[1] for off in (0, 5)
        )
        assert 1 / far["fine_weight"].item() - 1 / alone["fine_weight"].item() == pytest.approx(5, rel=1e-4)


def test_normalised_features_are_the_last_of_each_resolution(worked):
    """Those of a U-Net's way up; massive activations, beyond five deviations of the teacher's, are left out."""
    work, batch, _, features = worked
    last = {teacher.shape[2:]: (student, teacher) for student, teacher in features}
    assert 0 < len(last) < len(features)
    expected = []
    for student, teacher in last.values():
        for ours, theirs in zip(student, teacher, strict=True):
            kept = abs(theirs - theirs.mean()) <= 5 * theirs.std()
            expected.append(((ours - theirs)[kept] ** 2).sum() / (theirs[kept] ** 2).sum())
    weights = LossWeights(feature_kd=2.0, variance_kd=0.0)
    stage = StageSection(name="one", num_steps=1, weights=weights, feature_norm="relative")
    total, _ = step_losses(work.trainee, work.teacher, batch, stage, lambda value: value)
    assert total.item() == pytest.approx(2 * np.mean(expected), rel=1e-3)


def test_output_norm_is_that_of_output_kd(worked):
    work, batch, whole, _ = worked
    error = np.abs(whole[:, : batch.noisy.shape[1]] - batch.prediction.numpy()[:, : batch.noisy.shape[1]])
    weights = LossWeights(output_kd=1.0, variance_kd=0.0)
    stage = StageSection(name="one", num_steps=1, weights=weights, output_norm="l1")
    total, _ = step_losses(work.trainee, work.teacher, batch, stage, lambda value: value)
    assert total.item() == pytest.approx(error.mean(), rel=1e-4)
    half = stage.model_copy(update={"power": 0.5})
    total, _ = step_losses(work.trainee, work.teacher, batch, half, lambda value: value)
    assert total.item() == pytest.approx(np.sqrt(error.reshape(len(error), -1).mean(1)).mean(), rel=1e-4)


def test_every_weight_has_a_term():
    assert all(callable(term_of(name)) for name in LossWeights.model_fields)
