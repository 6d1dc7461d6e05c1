"""How many samples an interval takes, and that those drawn on the way are drawn once."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from diffcompress.evaluation import interval
from diffcompress.evaluation.cache import SampleCache
from diffcompress.evaluation.features import Extractor, FeatureSpace, RealImages
from diffcompress.evaluation.frechet import Moments, frechet_distance
from diffcompress.evaluation.proportion import of_count
from diffcompress.evaluation.score import Contest, evaluate_pipeline
from diffcompress.records.protocol import Protocol
from diffcompress.runtime import start
from tests.evaluation import models
from tests.telling import Told

PROTOCOL = Protocol(feature_space="tiny", sampler="ddim", sampler_steps=1, num_samples=99, seed=3)


class Heard(Told):
    def __init__(self):
        super().__init__()
        self.drawn = []

    def update(self, task, done, total, **values):
        self.drawn += [total] * (done == 0)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("interval")


@pytest.fixture(scope="module")
def contest(place):
    torch.manual_seed(0)
    space = FeatureSpace("tiny", "digest", Extractor().eval())
    student, teacher = models.loaded(place / "student", scale=0.9, size=28), models.loaded(place / "teacher", size=28)
    real = space.features(0.3 * torch.randn(512, 1, 28, 28))
    measured = replace(space, real=RealImages("noise", "d", Moments.of(real), real, len(real)))
    return Contest(student, teacher, PROTOCOL, measured)


def reach(contest, protocol, cache):
    drawn = cache.draw(contest.student, protocol, contest.space, "again")
    found = frechet_distance(drawn.features, contest.space.real.moments, seed=protocol.seed)
    return max(found.high - found.value, found.value - found.low) / found.value


def of_share(contest, share, folder, most=4096):
    heard = Heard()
    cache = SampleCache(folder, start("cpu"), heard)
    return interval.precise([contest], share, most, cache), cache, heard


def test_samples_are_as_many_as_the_interval_takes(contest, place):
    pilot = reach(contest, of_count(PROTOCOL, 256, contest.space), SampleCache(place, start("cpu"), Heard()))
    wide, cache, heard = of_share(contest, 1.01 * pilot, place)
    assert (wide.num_samples, len(heard.notes)) == (256, 1)
    share = 0.7 * pilot
    narrow, cache, heard = of_share(contest, share, place)
    assert 400 < narrow.num_samples < 1024  # twice as many, about
    assert narrow.num_samples % 64 == 0
    assert narrow.aside_samples == narrow.num_samples // 4
    assert reach(contest, narrow, cache) <= share < pilot
    assert heard.drawn[0] == 576 - 256  # an interval shrinks with the root: 256 / 0.7 ** 2, in whole 64
    # What the pilot drew was kept, and the last ones are all there: nothing more was drawn to look again.
    assert sum(heard.drawn) == narrow.num_samples - 256
    assert of_share(contest, share, place / "anew")[0] == narrow


def test_no_more_are_drawn_than_allowed_and_that_is_told(contest, place):
    protocol, _, heard = of_share(contest, 0.001, place, most=320)
    assert protocol.num_samples == 320
    assert heard.notes[0].startswith("320 samples: the 95 % interval reaches")
    assert heard.notes[0].endswith(", not 0.100 %, and more are not drawn")


def test_students_that_are_compared_have_one_number_the_largest(contest, place):
    wide = replace(contest, student=models.loaded(place / "other", clip_sample_range=0.2, size=28))
    cache = SampleCache(place, start("cpu"), Heard())
    pilot = of_count(PROTOCOL, 256, contest.space)
    one, other = (reach(each, pilot, cache) for each in (contest, wide))
    assert min(one, other) < 0.9 * max(one, other)
    share = 0.9 * max(one, other)
    together = interval.precise([contest, wide], share, 4096, cache).num_samples
    alone = [interval.precise([each], share, 4096, cache).num_samples for each in (contest, wide)]
    assert together == max(alone) > min(alone) == 256


def test_without_real_images_it_is_the_distance_to_the_teacher(contest, place):
    other = models.loaded(place / "far", seed=5, scale=20, size=28)
    to_teacher = replace(contest, student=other, space=replace(contest.space, real=None))
    pilot = of_share(to_teacher, 0.9, place)[2].notes[0]
    assert pilot.startswith("256 samples")
    share = 0.8 * float(pilot.split("reaches ")[1].split(" %")[0]) / 100
    protocol, cache, _ = of_share(to_teacher, share, place)
    metrics = evaluate_pipeline(replace(to_teacher, protocol=protocol), cache, quality_alone=True).metrics
    found = metrics["fd_teacher_tiny"]
    assert max(found.high - found.value, found.value - found.low) / found.value <= share
    assert found.samples == protocol.num_samples > 256


def test_a_student_whose_samples_are_not_finite_has_no_interval(contest, place):
    broken = models.loaded(place / "broken", size=28)
    with torch.no_grad():
        next(broken.denoiser.parameters()).fill_(torch.nan)
    broken = replace(broken, fingerprint="broken")
    assert of_share(replace(contest, student=broken), 0.01, place)[0].num_samples == 256


def test_why_there_is_no_interval_to_ask_for(contest):
    assert interval.why_not(contest, 2048) is None
    assert "no feature weights" in interval.why_not(replace(contest, space=None), 2048)
    nowhere = replace(contest, space=replace(contest.space, real=None), teacher=None)
    assert "neither a --teacher nor --data" in interval.why_not(nowhere, 2048)
    assert "100 samples are too few" in interval.why_not(contest, 100)


def test_an_entry_grows_to_what_it_would_have_been(contest, place):
    heard = Heard()
    grown, whole = (SampleCache(place / name, start("cpu"), heard) for name in ("grown", "whole"))
    protocols = [of_count(PROTOCOL, count, contest.space) for count in (100, 150, 150)]
    for protocol in protocols:
        found = grown.draw(contest.student, protocol, contest.space, "sampling")
    assert heard.drawn == [100, 50]
    expected = whole.draw(contest.student, protocols[-1], contest.space, "sampling")
    for name in ("images", "pixels", "variation", "features"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=0, atol=2e-3)
    assert [path.suffix for path in (place / "grown").iterdir()] == [".safetensors"]
