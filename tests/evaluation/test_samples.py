"""Drawn samples: their cache, failed ones, and the feature space they are compared in."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffcompress.bank import bank as banks
from diffcompress.errors import RunStopped, UsageError
from diffcompress.evaluation import cache as caching
from diffcompress.evaluation.cache import SampleCache, entry_key
from diffcompress.evaluation.failed import failed_share
from diffcompress.evaluation.features import EXTRACTOR_FILE, Extractor, FeatureSpace, demo_space, find_space
from diffcompress.evaluation.frechet import frechet_distance
from diffcompress.evaluation.variation import total_variation
from diffcompress.noise import streams
from diffcompress.pipeline.load import load
from diffcompress.pipeline.sampling import sample
from diffcompress.recipe import BankSection
from diffcompress.records.protocol import Protocol, check_same
from diffcompress.runtime import Progress, Runtime, StopRequest, start
from diffcompress.sources.resolve import resolve
from tests import tiny
from tests.evaluation import models

PROTOCOL = Protocol(feature_space=None, sampler="ddim", sampler_steps=2, num_samples=10, seed=0)


def changed(**values):
    return PROTOCOL.model_copy(update=values)


class StopAfter(Progress):
    """Asks for a stop once `number` shards are drawn, and keeps what it was told."""

    def __init__(self, stop, number=10**9):
        self.stop, self.number, self.seen, self.warnings = stop, number, [], []

    def update(self, task, done, total, **values):
        self.seen.append(done)
        if len(self.seen) >= self.number:
            self.stop.signal = 15

    def warn(self, text):
        self.warnings.append(text)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return models.loaded(tmp_path_factory.mktemp("model"), size=28)


@pytest.fixture
def space():
    torch.manual_seed(0)
    return FeatureSpace("tiny", "digest", Extractor().eval())


def stopping(stop: StopRequest) -> Runtime:
    return replace(start("cpu"), stop=stop)


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr(caching, "automatic_batch_size", lambda _pipeline: 4)


def test_rows_are_those_of_the_samples(tmp_path, pipeline, space):
    drawn = SampleCache(tmp_path, start("cpu"), Progress()).draw(pipeline, PROTOCOL, space, "sampling")
    images = sample(pipeline, range(10), seed=PROTOCOL.sampling_seed, num_steps=2)
    assert torch.equal(drawn.images, images.half().float())
    assert torch.allclose(drawn.features, space.features(images), atol=1e-5)
    assert torch.allclose(drawn.variation, total_variation(images), atol=1e-6)
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]


def test_samples_have_the_guidance_and_steps_of_the_protocol(tmp_path):
    dit = load(resolve(str(tiny.save_dit(tmp_path / "dit"))))
    protocol = changed(num_samples=3, sampler_steps=3, guidance=2.5)
    drawn = SampleCache(tmp_path / "cache", start("cpu"), Progress()).draw(dit, protocol, None, "sampling")
    expected = sample(dit, range(3), seed=protocol.sampling_seed, num_steps=3, guidance=2.5)
    torch.testing.assert_close(drawn.images, expected.half().float())
    weights = dit.fingerprint
    assert entry_key(weights, protocol) != entry_key(weights, protocol.model_copy(update={"guidance": 2.0}))


def test_a_bank_of_the_same_seed_holds_none_of_the_evaluated_samples(tmp_path, pipeline):
    """Neither does the probe fit its lines on them. Drawn from the same noise they would be equal."""
    section = BankSection(num_samples=10, sampler_steps=2, eta=0.0, jitter=False)
    bank = banks.fill(tmp_path / "bank", pipeline, section, PROTOCOL.seed, None, start("cpu"), Progress())
    seen = []
    cache = SampleCache(tmp_path / "cache", start("cpu"), Progress())
    for seed in (PROTOCOL.seed, PROTOCOL.seed + streams.PROBE_SEED_SHIFT):
        seen.append(cache.draw(pipeline, changed(seed=seed), None, "sampling").images)
    assert torch.allclose(bank.clean, sample(pipeline, range(10), seed=PROTOCOL.seed, num_steps=2), atol=1e-4)
    everything = torch.cat([bank.clean, *seen]).flatten(1)
    apart = torch.cdist(everything, everything).fill_diagonal_(torch.inf)
    assert apart.min() > 0.1 * everything.norm(dim=1).mean()


@pytest.mark.usefixtures("small_batches")
def test_a_stop_loses_nothing_and_the_result_is_the_same(tmp_path, pipeline, space):
    whole = SampleCache(tmp_path / "whole", start("cpu"), Progress()).draw(pipeline, PROTOCOL, space, "sampling")
    stop = StopRequest()
    with pytest.raises(RunStopped):
        SampleCache(tmp_path / "b", stopping(stop), StopAfter(stop, 3)).draw(pipeline, PROTOCOL, space, "sampling")
    (folder,) = (tmp_path / "b").iterdir()
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert len(before) == 2

    stop = StopRequest()
    with pytest.raises(RunStopped):  # the two batches that are there are not drawn again
        SampleCache(tmp_path / "b", stopping(stop), StopAfter(stop, 1)).draw(pipeline, PROTOCOL, space, "sampling")
    assert all((folder / name).stat().st_mtime_ns == made for name, made in before.items())
    resumed = SampleCache(tmp_path / "b", start("cpu"), Progress()).draw(pipeline, PROTOCOL, space, "sampling")
    for name in ("images", "variation", "features"):
        assert torch.equal(getattr(resumed, name), getattr(whole, name))
    assert not folder.exists()


@pytest.mark.usefixtures("small_batches")
def test_processes_draw_a_part_each_and_the_entry_is_that_of_one(tmp_path, pipeline, space):
    """10 samples for 3 processes: 4, 4 and 2 of them."""
    whole = SampleCache(tmp_path / "whole", start("cpu"), Progress()).draw(pipeline, PROTOCOL, space, "sampling")
    drawn = []
    for place in (2, 1, 0):
        cache = SampleCache(tmp_path / "parts", models.one_of(place, 3), Progress())
        if place:  # nobody has made the first part yet
            with pytest.raises(FileNotFoundError):
                cache.draw(pipeline, PROTOCOL, space, "sampling")
            drawn.append(sorted(path.name for path in (tmp_path / "parts").rglob("shard-*")))
        else:
            found = cache.draw(pipeline, PROTOCOL, space, "sampling")
    assert drawn == [["shard-00002.safetensors"], ["shard-00001.safetensors", "shard-00002.safetensors"]]
    for name in ("images", "variation", "features"):
        assert torch.equal(getattr(found, name), getattr(whole, name))


def test_a_ready_entry_serves_shorter_protocols_without_sampling(tmp_path, pipeline, space):
    long = SampleCache(tmp_path / "ready", start("cpu"), Progress()).draw(pipeline, PROTOCOL, space, "sampling")
    progress = StopAfter(StopRequest())
    cache = SampleCache(tmp_path / "own", start("cpu"), progress, ready=(tmp_path / "ready",))
    short = cache.draw(pipeline, changed(num_samples=6), space, "sampling")
    assert torch.equal(short.features, long.features[:6])
    assert len(short.variation) == len(short.images) == 6
    assert progress.seen == []
    assert not (tmp_path / "own").exists()


def test_a_damaged_entry_is_drawn_again_and_said_so(tmp_path, pipeline):
    progress = StopAfter(StopRequest())
    cache = SampleCache(tmp_path, start("cpu"), progress)
    first = cache.draw(pipeline, PROTOCOL, None, "sampling")
    (entry,) = tmp_path.iterdir()
    entry.write_bytes(entry.read_bytes()[:100])
    assert torch.equal(cache.draw(pipeline, PROTOCOL, None, "sampling").variation, first.variation)
    assert len(progress.warnings) == 1


def test_samples_that_were_stopped_for_are_the_same_bytes(tmp_path, pipeline, monkeypatch):
    """However much memory is free by then: rounding depends on how many are drawn at once."""
    whole = SampleCache(tmp_path / "whole", start("cpu"), Progress())
    monkeypatch.setattr(caching, "automatic_batch_size", lambda _: 3)
    whole.draw(pipeline, PROTOCOL, None, "sampling")
    stop = StopRequest()
    with pytest.raises(RunStopped):
        SampleCache(tmp_path / "parts", stopping(stop), StopAfter(stop, 1)).draw(pipeline, PROTOCOL, None, "sampling")
    monkeypatch.setattr(caching, "automatic_batch_size", lambda _: 7)
    SampleCache(tmp_path / "parts", start("cpu"), Progress()).draw(pipeline, PROTOCOL, None, "sampling")
    (one,), (other,) = (list((tmp_path / name).iterdir()) for name in ("whole", "parts"))
    assert one.read_bytes() == other.read_bytes()


def test_the_key_follows_from_weights_sampler_seed_and_extractor(tmp_path, pipeline):
    other = models.loaded(tmp_path, seed=3)
    keys = {
        entry_key(pipeline.fingerprint, PROTOCOL),
        entry_key(other.fingerprint, PROTOCOL),
        *(
            entry_key(pipeline.fingerprint, changed(**change))
            for change in ({"seed": 1}, {"sampler_steps": 3}, {"eta": 1.0}, {"extractor": "other"})
        ),
    }
    assert len(keys) == 6
    assert entry_key("a", PROTOCOL) == entry_key("a", changed(num_samples=5, versions={}))


def test_different_protocols_are_not_compared():
    check_same(PROTOCOL, changed(versions={"torch": "1"}))
    with pytest.raises(UsageError, match="num_samples is 10 and 11; seed is 0 and 1"):
        check_same(PROTOCOL, changed(num_samples=11, seed=1))


def test_total_variation_equals_loops():
    image = torch.randn(2, 1, 3, 4)
    for i in range(2):
        x = image[i, 0]
        down = sum(abs(x[a + 1, b] - x[a, b]) for a in range(2) for b in range(4)) / 8
        right = sum(abs(x[a, b + 1] - x[a, b]) for a in range(3) for b in range(3)) / 9
        assert total_variation(image)[i].item() == pytest.approx(float(down + right) / 2, rel=1e-5)


def test_noise_and_broken_samples_fail():
    smooth = torch.linspace(-1, 1, 28).expand(1000, 1, 28, 28) * torch.rand(1000, 1, 1, 1)
    samples = smooth[:100].clone()
    samples[:7] = torch.randn(7, 1, 28, 28)
    samples[7, 0, 3, 3] = torch.nan
    found = failed_share(total_variation(samples), total_variation(smooth))
    assert found.value == pytest.approx(0.08)
    assert 0.03 < found.low < 0.08 < found.high < 0.16
    assert failed_share(total_variation(smooth), total_variation(smooth)).value == pytest.approx(0.001)


def test_extractor_files(tmp_path):
    good = Extractor()
    save_file(good.state_dict(), tmp_path / "mine.safetensors")
    space = find_space(None, tmp_path / "mine.safetensors")
    assert (space.name, space.real) == ("mine", None)
    images = torch.randn(3, 1, 28, 28)
    assert torch.equal(space.features(images), good.eval().features(images).detach())


def test_no_space_for_teachers_that_are_not_the_demo(pipeline):
    assert find_space(pipeline) is None


def test_the_shipped_space():
    space = find_space(None, EXTRACTOR_FILE)
    assert space.name == "demo"
    assert EXTRACTOR_FILE.stat().st_size <= 1 << 20
    assert (space.real.name, space.held_out.name) == ("fashion-mnist train", "fashion-mnist test")
    floor = frechet_distance(space.real.other, space.real.moments)
    noise = space.features(torch.randn(256, 1, 28, 28, generator=torch.Generator().manual_seed(0)))
    assert frechet_distance(noise, space.real.moments).value > 100 * floor.value


def test_statistics_of_another_extractor_are_refused(tmp_path, monkeypatch):
    from diffcompress.evaluation import features

    tensors = load_file(features.REFERENCE_FILE)
    save_file(tensors, tmp_path / "reference.safetensors", metadata={"extractor_sha256": "0"})
    monkeypatch.setattr(features, "REFERENCE_FILE", tmp_path / "reference.safetensors")
    with pytest.raises(UsageError, match="made with another extractor"):
        demo_space()
