"""What every metric must tell: the embedded teacher is like itself, and a damaged copy of it is not."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from diffcompress.evaluation import correction, gates
from diffcompress.evaluation.cache import SampleCache
from diffcompress.evaluation.failed import failed_share
from diffcompress.evaluation.features import demo_space, protocol_for
from diffcompress.evaluation.score import Contest, evaluate_pipeline
from diffcompress.evaluation.variation import total_variation
from diffcompress.noise import generator
from diffcompress.pipeline.load import load, state_fingerprint
from diffcompress.pipeline.sampling import sample
from diffcompress.records.metrics import Metric, every
from diffcompress.runtime import Progress, start
from diffcompress.sources.resolve import resolve

GATES = ("agreement>0.99", "fd<1.2*teacher", "fd_demo_held_out<1.2*teacher", "kd<1.2*teacher", "fd_teacher<1",
         "kd_teacher<0.1", "precision>0.9*teacher", "recall>0.9*teacher", "density>0.9*teacher", "coverage>0.9*teacher",
         "paired_distance<0.1", "failed_samples<=2%")  # fmt: skip


def noise_on_weights(scale, seed):
    def damage(denoiser):
        for number, value in enumerate(denoiser.parameters()):
            value += scale * value.std(correction=0) * torch.randn(value.shape, generator=generator(seed, number))

    return damage


noisy_weights = noise_on_weights(1.0, 1)
slightly_noisy_weights = noise_on_weights(0.5, 0)


def swapped_channels(denoiser):
    weight = denoiser.conv_in.weight
    weight.copy_(weight.flip(0).clone())


def damaged(teacher, damage):
    denoiser = copy.deepcopy(teacher.denoiser)
    with torch.no_grad():
        damage(denoiser)
    return replace(teacher, denoiser=denoiser, fingerprint=state_fingerprint(denoiser))


@pytest.fixture(scope="module")
def teacher():
    return load(resolve("demo"))


@pytest.fixture(scope="module")
def score(tmp_path_factory, teacher):
    """Evaluates a damaged copy of the embedded teacher; few samples and steps, so that it takes seconds.

    With two steps the teacher itself is too blurred to recall any real image.
    """
    space = demo_space()
    protocol = protocol_for(space, teacher, num_samples=128, sampler_steps=3, agreement_images=8, agreement_levels=4)
    folder = tmp_path_factory.mktemp("cache")

    def run(damage=None):
        student = teacher if damage is None else damaged(teacher, damage)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(correction, "NUM_IMAGES", 8)
            cache = SampleCache(folder, start("cpu"), Progress())
            return evaluate_pipeline(Contest(student, teacher, protocol, space), cache)

    return run


def test_the_teacher_is_like_itself(score):
    result = score()
    metrics = result.metrics
    for name in ("fd_teacher_demo", "kd_teacher_demo", "paired_distance"):
        assert metrics[name].low <= 0 <= metrics[name].high, name
        assert metrics[name].value == pytest.approx(0, abs=1e-6)
    assert metrics["agreement"].value == 1
    for name, metric in metrics.measured.items():
        if not Metric.named(name).kind.is_cost and metric.teacher is not None:
            assert metric.value == metric.teacher.value, name
    assert result.probe.reading == "at the teacher"
    assert result.warnings == []
    assert metrics.not_computed == []
    assert all(one.passed for one in gates.judge(gates.parse(GATES, every()), metrics, "demo"))


@pytest.mark.parametrize("damage", [noisy_weights, slightly_noisy_weights, swapped_channels])
def test_a_damaged_copy_is_flagged_by_every_metric(score, damage):
    result = score(damage)
    verdicts = gates.judge(gates.parse(GATES, every()), result.metrics, "demo")
    assert [one.expr for one in verdicts if one.passed] == []
    assert result.probe.before > result.probe.floor


@pytest.mark.parametrize(("damage", "failed"), [(slightly_noisy_weights, 0), (noisy_weights, 1), (swapped_channels, 1)])
def test_failed_samples_see_noise_and_not_every_wrong_image(teacher, damage, failed, tmp_path):
    """With 25 steps slight noise on the weights ends in a texture no noisier than some clothes: docs/evaluation.md."""
    space = demo_space()
    protocol = protocol_for(space, teacher)
    right = SampleCache(tmp_path, start("cpu"), Progress()).draw(teacher, protocol, space, "not drawn: it ships")
    wrong = sample(damaged(teacher, damage), range(3), seed=protocol.sampling_seed, num_steps=protocol.sampler_steps)
    assert (wrong - right.images[:3]).square().mean().sqrt() > 0.3
    assert failed_share(total_variation(wrong), right.variation).value == failed
    noise = wrong + 0.5 * torch.randn(wrong.shape, generator=generator(0))
    assert failed_share(total_variation(noise), right.variation).value == 1
