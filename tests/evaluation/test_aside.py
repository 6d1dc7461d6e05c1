"""Models that only stand beside the student, of fewer samples: what is compared with them is of as many."""

from __future__ import annotations

import types

import pytest
import torch

from diffcompress.evaluation import cmmd, correction, distances, failed, paired, sliced
from diffcompress.evaluation.cache import Drawn
from diffcompress.evaluation.features import FeatureSpace, RealImages
from diffcompress.evaluation.frechet import Moments, frechet_distance, kernel_distance
from diffcompress.evaluation.material import Material
from diffcompress.records.evaluation import Metrics
from diffcompress.records.metrics import KINDS, Metric
from diffcompress.records.protocol import Protocol

COUNT, ASIDE, DIMENSION = 256, 32, 4
SIZES = {"student": COUNT, "teacher": COUNT, "untrained": ASIDE, "corrected": ASIDE}


def drawn(role: str) -> Drawn:
    own = torch.Generator().manual_seed(len(role))
    images = torch.randn(ASIDE, 1, 4, 4, generator=own)
    variation, features = torch.rand(SIZES[role], generator=own), torch.randn(SIZES[role], DIMENSION, generator=own)
    return Drawn(images, variation, features, images)


@pytest.fixture(scope="module")
def material() -> Material:
    real = torch.randn(COUNT, DIMENSION, generator=torch.Generator().manual_seed(0))
    images = RealImages("real", "", Moments.of(real), real, COUNT)
    space = FeatureSpace("clip", "", types.SimpleNamespace(dimension=DIMENSION), images)
    protocol = Protocol(
        feature_space="clip", sampler="ddim", sampler_steps=2, num_samples=COUNT, seed=0, aside_samples=ASIDE
    )
    return Material({}, {role: drawn(role) for role in SIZES}, space, protocol)


@pytest.fixture(scope="module")
def metrics(material: Material) -> Metrics:
    found = Metrics()
    in_space = [Metric(KINDS[name], "clip") for name in ("fd", "kd", "fd_teacher", "kd_teacher")]
    distances.add_metrics(material, in_space, found)
    sliced.add_metrics(material, [Metric(KINDS["swd"], "clip"), Metric(KINDS["swd_teacher"], "clip")], found)
    cmmd.add_metrics(material, [Metric(KINDS["cmmd"])], found)
    failed.add_metrics(material, [Metric(KINDS["failed_samples"])], found)
    paired.add_metrics(material, [Metric(KINDS["paired_distance"])], found)
    return found


def test_each_value_tells_what_it_is_of(metrics):
    assert len(metrics.measured) == 18 and not metrics.not_computed
    for name, one in metrics.measured.items():
        images = name.startswith("paired")
        corrected = name.endswith("_corrected")
        assert one.samples == (ASIDE if corrected or images else COUNT)
        if corrected:
            assert one.untrained is None and one.uncorrected is not None
        else:
            assert one.uncorrected is None and one.untrained.samples == (None if images else ASIDE)
    told = metrics["fd_clip"].to_json()
    assert told["untrained"]["samples"] == ASIDE and "samples" not in told["teacher"]


def test_a_corrected_student_stands_beside_as_many_of_its_own(material, metrics):
    few = {role: value[:ASIDE] for role, value in material.features.items()}
    real = material.in_space.real
    for role, value in (("uncorrected", few["student"]), ("teacher", few["teacher"])):
        assert getattr(metrics["fd_clip_corrected"], role).value == frechet_distance(value, real.moments).value
        assert getattr(metrics["kd_clip_corrected"], role).value == kernel_distance(value, real.features).value
    to_teacher = kernel_distance(few["student"], few["teacher"], paired=True)
    assert metrics["kd_teacher_clip_corrected"].uncorrected.value == to_teacher.value
    assert metrics["fd_clip_corrected"].uncorrected.value != metrics["fd_clip"].value
    noisy = (material.drawn["student"].variation[:ASIDE] > material.drawn["teacher"].variation.max()).float().mean()
    assert metrics["failed_samples_corrected"].uncorrected.value == pytest.approx(noisy.item(), abs=1 / ASIDE)


def test_the_probe_compares_equal_counts(metrics):
    found = correction.verdict(metrics, "clip")
    mended = metrics["fd_clip_corrected"]
    assert (found.before, found.floor) == (mended.uncorrected.value, mended.teacher.value)
    assert f"({ASIDE} samples)" in found.sentence or found.explained is None
