"""Denoisers that memory does not hold: layers stay in their files, and say what they would have said."""

from __future__ import annotations

import copy
import importlib
import types
from dataclasses import replace

import psutil
import pytest
import torch

from diffcompress.errors import UsageError
from diffcompress.families import registry
from diffcompress.memory import peak
from diffcompress.pipeline import placing
from diffcompress.pipeline import precision as precisions
from diffcompress.pipeline.load import hollow, load
from diffcompress.pipeline.trace import calls_of
from diffcompress.sources.resolve import resolve
from diffcompress.sources.weights import open_state
from diffcompress.training.objective import FeatureTap
from tests.telling import Told

CPU = torch.device("cpu")
QUICK = ("pipe_stable_diffusion", "pipe_dit", "pipe_sd3", "pipe_flux")
SLOW = (
    "pipe_stable_diffusion_xl",
    "pipe_pixart",
    "pipe_hunyuandit",
    "pipe_sana",
    "pipe_lumina2",
    "pipe_z_image",
    "pipe_wan",
    "pipe_qwenimage",
    "pipe_auraflow",
)


def limit(monkeypatch, free: int) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: types.SimpleNamespace(available=free))


def saved(name: str, folder) -> str:
    """A tiny pipeline of random weights in half precision, in shards."""
    pipeline = importlib.import_module(f"tests.families.{name}").pipeline()
    denoiser = getattr(pipeline, "unet", None) or pipeline.transformer
    with torch.no_grad():
        for weight in denoiser.parameters():
            weight.normal_(std=0.2)
    pipeline.to(torch.bfloat16).save_pretrained(folder, max_shard_size="40KB")
    return str(folder)


@pytest.fixture(params=[*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def both(request, tmp_path, monkeypatch):
    """A teacher in memory, and the same one where memory does not hold it."""
    reference = resolve(saved(request.param, tmp_path / "teacher"))
    shape = registry.find(reference.class_name).sample_shape(reference.complete_config)
    size = 8 if shape[-1] > 16 else None
    whole = load(reference, sample_size=size)
    limit(monkeypatch, 1000)
    return whole, load(reference, sample_size=size)


def test_layers_in_their_files_say_the_same_and_leave_memory_again(both):
    whole, placed = both
    assert whole.placed is None and not any(weight.is_meta for weight in whole.denoiser.parameters())
    assert placed.placed is not None and "stay on disk and are read for each call" in placed.placed
    assert placed.fingerprint == whole.fingerprint and placed.device == CPU and placed.precision == whole.precision
    assert torch.equal(placed.examples(), whole.examples())
    assert all(weight.is_meta for weight in placed.denoiser.parameters())
    size = sum(weight.nbytes for weight in whole.denoiser.parameters())
    taken, plain = (peak(model.examples, CPU) for model in (placed, whole))
    assert taken - plain < size / 2  # the largest layers of a tiny model are a good part of it


def test_what_watches_a_denoiser_sees_the_same(both):
    whole, placed = both
    seen = []
    for model in both:
        with calls_of(model.denoiser) as calls, FeatureTap(model.denoiser, model.family) as tap:
            model.examples()
            seen.append(tap.features)
        assert len(calls) == len(precisions.SHARES)
    assert all(torch.equal(one, other) for one, other in zip(*seen, strict=True))
    assert torch.equal(placed.examples(), whole.examples())  # after the watch as before
    again = replace(placed, denoiser=copy.deepcopy(placed.denoiser))
    assert torch.equal(again.examples(), whole.examples())


def test_a_part_in_memory_and_the_rest_in_files_say_the_same(both):
    whole, _ = both
    reference = whole.reference
    state, denoiser = open_state(reference), hollow(whole.family, reference.config, "")
    size = sum(weight.nbytes for weight in denoiser.parameters())
    told = placing.place(denoiser, state, CPU, {"cpu": int(0.6 * size)})
    assert " on cpu, the layers of the other " in told
    there = {weight.is_meta for weight in denoiser.parameters()}
    assert there == {True, False}
    assert torch.equal(replace(whole, denoiser=denoiser).examples(), whole.examples())


def test_weights_that_are_computed_with_as_they_are_stored_take_no_memory_of_their_own(tmp_path, monkeypatch):
    pipeline = importlib.import_module("tests.families.pipe_sd3").pipeline()
    pipeline.save_pretrained(tmp_path)
    limit(monkeypatch, 1000)
    assert load(resolve(str(tmp_path))).placed is None


def test_what_lies_beside_counts_where_it_matters(tmp_path, monkeypatch):
    reference = resolve(saved("pipe_sd3", tmp_path))
    size = sum(weight.nbytes for weight in load(reference).denoiser.parameters())
    asked = []

    def beside(of):
        def count():
            asked.append(of)
            return of

        return count

    limit(monkeypatch, 4 * size)
    assert load(reference, beside=beside(2 * size)).placed is None
    assert load(reference, beside=beside(3 * size)).placed is not None
    limit(monkeypatch, 100 * size)
    assert load(reference, beside=beside(1000 * size)).placed is None  # without it no more would fit
    assert asked == [2 * size, 3 * size]


def test_a_file_that_is_damaged_later_is_told_when_its_layer_is_read(tmp_path, monkeypatch):
    reference = resolve(saved("pipe_dit", tmp_path))
    limit(monkeypatch, 1000)
    placed = load(reference)
    file = sorted(reference.denoiser.glob("*.safetensors"))[-1]
    content = bytearray(file.read_bytes())
    content[-2:] = b"\xc0\x7f"  # NaN in bfloat16
    file.write_bytes(content)
    with pytest.raises(UsageError, match="NaN"):
        placed.examples()


def test_weights_that_leave_are_back_when_they_are_asked(tmp_path):
    """On the device that they left, and say what they said."""
    pipeline = load(resolve(saved("pipe_sd3", tmp_path)))
    expected = pipeline.examples()
    for _ in range(2):
        pipeline.leave()
        assert pipeline.device == CPU
        assert torch.equal(pipeline.examples(), expected)
    elsewhere = torch.device("meta")  # where it is seen that they lie there
    placing.leave(pipeline.denoiser, elsewhere)
    assert placing.device_of(pipeline.denoiser) == CPU  # the first device that they left is theirs


def test_a_device_that_holds_the_teacher_but_not_its_student_as_well(tmp_path, monkeypatch):
    reference, heard = resolve(saved("pipe_sd3", tmp_path)), Told()
    size = sum(weight.nbytes for weight in load(reference).denoiser.parameters())
    limit(monkeypatch, 4 * size)
    few, many = (lambda: 2 * size), (lambda: 3 * size)
    assert not placing.may_leave(size, CPU)  # whose memory is where they would go
    assert load(reference, beside=many, asked=few).placed is not None
    monkeypatch.setattr(placing, "may_leave", lambda weights, _device: size <= weights < 2 * size)
    found = load(reference, beside=many, asked=few, progress=heard)
    assert found.parted and found.placed is None
    assert "leaves cpu while its student trains" in heard.notes[-1]
    assert not load(reference, beside=few, asked=few).parted
    assert load(reference, beside=many, asked=many).placed is not None
    assert load(reference, beside=many).placed is not None


@pytest.mark.parametrize(("processes", "fits"), [(None, True), ("1", True), ("4", True), ("5", False)])
def test_the_host_takes_in_the_weights_of_all_its_processes(monkeypatch, processes, fits):
    limit(monkeypatch, 100)
    if processes is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    assert placing.may_leave(20, torch.device("cuda")) == fits
