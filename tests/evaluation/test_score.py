"""What `evaluate_pipeline` asks of its parts: which samples, which conditions, which seeds."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from diffcompress.evaluation import agreement, correction
from diffcompress.evaluation.cache import SampleCache
from diffcompress.evaluation.score import Contest, evaluate_pipeline
from diffcompress.noise import streams
from diffcompress.pipeline.load import load
from diffcompress.pipeline.sampling import conditioning_for, sample
from diffcompress.records.protocol import Protocol
from diffcompress.runtime import Progress, start
from diffcompress.sources.resolve import resolve
from tests import tiny

PROTOCOL = Protocol(
    feature_space=None,
    sampler="ddim",
    sampler_steps=2,
    num_samples=6,
    seed=0,
    agreement_images=4,
    agreement_levels=3,
)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """Class-conditional: what is asked with other labels has other predictions."""
    return load(resolve(str(tiny.save_dit(tmp_path_factory.mktemp("dit")))))


@pytest.fixture(scope="module")
def student(teacher):
    denoiser = copy.deepcopy(teacher.denoiser)
    with torch.no_grad():
        denoiser.proj_out_2.weight *= 0.8
    return replace(teacher, denoiser=denoiser, fingerprint="")


@pytest.fixture(scope="module")
def result(teacher, student, tmp_path_factory):
    cache = SampleCache(tmp_path_factory.mktemp("cache"), start("cpu"), Progress())
    return evaluate_pipeline(Contest(student, teacher, PROTOCOL, None), cache)


def test_agreement_is_on_the_teachers_own_samples_with_their_conditions(teacher, student, result):
    seed = PROTOCOL.sampling_seed
    clean = sample(teacher, range(6), seed=seed, num_steps=2).half().float()[:4]
    labels = {name: value[:4] for name, value in conditioning_for(teacher, range(6), seed).items()}
    found = agreement.measure({"student": student}, teacher, clean, labels, num_levels=3, seed=0)["student"]
    metric = result.metrics["agreement"]
    assert metric.value == pytest.approx(found.agreement.value, rel=1e-4)
    assert metric.value < 1
    assert metric.samples == 4
    assert [level.error for level in metric.levels] == pytest.approx([one.error for one in found.levels], rel=1e-3)


def test_pairs_have_the_same_noise(teacher, student, result):
    ours, theirs = (sample(model, range(6), seed=PROTOCOL.sampling_seed, num_steps=2) for model in (student, teacher))
    apart = (ours.half().float() - theirs.half().float()).square().flatten(1).mean(1).sqrt()
    assert result.metrics["paired_distance"].value == pytest.approx(apart.mean().item(), rel=1e-3)


def test_the_probe_is_fitted_on_samples_that_are_not_evaluated(teacher, student, result):
    apart = PROTOCOL.model_copy(update={"seed": streams.PROBE_SEED_SHIFT}).sampling_seed
    clean = sample(teacher, range(6), seed=apart, num_steps=2).half().float()
    line = correction.fit(student, teacher, clean, conditioning_for(teacher, range(6), apart), num_steps=2, seed=0)
    mended = sample(correction.corrected(student, line), range(6), seed=PROTOCOL.sampling_seed, num_steps=2)
    theirs = sample(teacher, range(6), seed=PROTOCOL.sampling_seed, num_steps=2)
    distance = (mended.half().float() - theirs.half().float()).square().flatten(1).mean(1).sqrt().mean().item()
    assert result.metrics["paired_distance_corrected"].value == pytest.approx(distance, rel=1e-3)
    assert result.probe.after == result.metrics["paired_distance_corrected"].value
