"""What a denoiser says in other terms: exact, and no other samples."""

from __future__ import annotations

import itertools

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler

from diffcompress.noise import DIFFUSION_SCHEDULERS, from_scheduler, generator
from diffcompress.noise.diffusion import PREDICTION_TYPES
from diffcompress.pipeline.load import load
from diffcompress.pipeline.predicting import in_terms_of, predicting
from diffcompress.pipeline.sampling import sample
from diffcompress.sources.resolve import resolve
from tests import tiny
from tests.evaluation import models
from tests.families import pipe_dit

PAIRS = list(itertools.permutations(PREDICTION_TYPES, 2))


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_a_prediction_means_the_same_image_and_noise_in_all_terms(ours, theirs):
    own = from_scheduler(DDIMScheduler().config).predicting(ours)
    noisy, prediction = (torch.randn(5, 1, 4, 4, dtype=torch.float64, generator=generator(i)) for i in range(2))
    timestep = torch.tensor([0, 10, 400, 900, 999])
    other = own.predicting(theirs)
    told = own.converted(prediction, noisy, timestep, other)
    assert not torch.allclose(told, prediction)
    for one, same in zip(
        own.clean_and_noise(prediction, noisy, timestep), other.clean_and_noise(told, noisy, timestep), strict=True
    ):
        torch.testing.assert_close(same, one)
    torch.testing.assert_close(other.converted(told, noisy, timestep, own), prediction)


def test_all_schedulers_that_are_diffusion_take_v():
    """Of diffusers; two of them are hollow without packages that are optional."""
    found = [getattr(diffusers, name) for name in DIFFUSION_SCHEDULERS]
    real = [kind for kind in found if issubclass(kind, diffusers.SchedulerMixin)]
    assert len(real) >= len(found) - 2
    for kind in real:
        assert kind(prediction_type="v_prediction").config.prediction_type == "v_prediction"


def test_flow_has_one_prediction():
    flow = from_scheduler({"_class_name": "FlowMatchEulerDiscreteScheduler"})
    assert flow.predicting("flow_prediction") is flow
    with pytest.raises(ValueError, match="one prediction"):
        flow.predicting("v_prediction")
    with pytest.raises(ValueError, match="velocity"):
        from_scheduler(DDIMScheduler().config).predicting("velocity")


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_a_pipeline_in_other_terms_draws_the_same(tmp_path, ours, theirs):
    """At no noise to speak of and at next to no signal the terms differ most; the walk passes through both."""
    pipeline = models.loaded(tmp_path, prediction_type=ours)
    told = in_terms_of(pipeline, pipeline.noise.predicting(theirs))
    assert told.noise.prediction_type == theirs
    drawn = [sample(one, range(3), seed=0, num_steps=10) for one in (pipeline, told)]
    torch.testing.assert_close(drawn[1], drawn[0], rtol=1e-3, atol=1e-3)
    assert in_terms_of(told, pipeline.noise.predicting(theirs)) is told


def test_a_learned_variance_is_the_same_in_all_terms(tmp_path):
    pipe_dit.pipeline(10).save_pretrained(tmp_path)
    pipeline = load(resolve(str(tmp_path)))
    told = in_terms_of(pipeline, pipeline.noise.predicting("v_prediction"))
    noisy = torch.randn(2, *pipeline.sample_shape, generator=generator(0))
    given = noisy, torch.tensor([5, 700]), {"class_labels": torch.tensor([1, 2])}
    own, other = pipeline.predict_all(*given), told.predict_all(*given)
    channels = noisy.shape[1]
    assert own.shape[1] == 2 * channels
    assert torch.equal(own[:, channels:], other[:, channels:])
    signal, sigma = pipeline.noise.signal_and_noise(given[1], noisy)
    expected = (own[:, :channels] - sigma * noisy) / signal
    torch.testing.assert_close(other[:, :channels], expected, rtol=1e-3, atol=1e-3)


def test_what_is_around_a_student_says_what_it_predicts(tmp_path):
    pipeline = load(resolve(str(tiny.save_pipeline(tmp_path))))
    assert predicting(pipeline, None) is pipeline
    assert predicting(pipeline, "epsilon") is pipeline
    around = predicting(pipeline, "v_prediction")
    assert around.reference.scheduler == {**pipeline.reference.scheduler, "prediction_type": "v_prediction"}
    assert around.noise.prediction_type == "v_prediction"
    assert pipeline.reference.scheduler["prediction_type"] == "epsilon"
