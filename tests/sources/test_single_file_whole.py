"""Whole checkpoints as teachers: their own parts converted, the rest from the folder around them or from the Hub."""

from __future__ import annotations

import importlib
import json
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

import diffcompress
from diffcompress.errors import AccessError, ExitStatus, RunStopped, UsageError
from diffcompress.families import registry
from diffcompress.pipeline.left_out import leave_out
from diffcompress.pipeline.load import load
from diffcompress.sources import linking
from diffcompress.sources import originals as layouts
from diffcompress.sources.assembly import assembled
from diffcompress.sources.fetch import fetch
from diffcompress.sources.resolve import resolve
from tests import tiny
from tests.cli.command import spawn
from tests.families import pipe_stable_diffusion
from tests.hub_server import HubServer
from tests.sources import originals

KNOWN = layouts.published()
KINDS = ("pipe_stable_diffusion", "pipe_stable_diffusion_xl", "pipe_sd3")
NAME = "someone/stable-diffusion"
SMALL = (*tiny.SHORTEST, "student.importance=magnitude")
# What a user runs who has diffusers alone.
CLEAN = """
import sys
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained(sys.argv[1])
image = pipeline("a red kite", num_inference_steps=2, height=16, width=16, output_type="np").images
print(type(pipeline).__name__, image.shape, "diffcompress" in sys.modules)
"""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache, of this test's own."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home"))
    return tmp_path / "assets"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub that the client of this process talks to."""
    from huggingface_hub import constants

    with HubServer(tmp_path / "hub") as server:
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, server.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        yield server


def _pipeline(kind):
    pipeline = importlib.import_module(f"tests.families.{kind}").pipeline()
    if kind == "pipe_sd3":
        torch.nn.init.eye_(pipeline.text_encoder.text_projection.weight)
    return pipeline


def _prepared(folder, pipeline, *dropped, kept=(), dtype=None):
    """A checkpoint without the tensors `dropped` (prefixes), in a pipeline folder with the weights of `kept` alone."""
    pipeline.save_pretrained(folder)
    for file in folder.rglob("*.safetensors"):
        if file.parent.name not in kept:
            file.unlink()
    tensors = {n: v for n, v in originals.whole(pipeline).items() if not n.startswith(tuple(dropped) or "-")}
    if dtype is not None:
        tensors = {n: v.to(dtype) if v.is_floating_point() else v for n, v in tensors.items()}
    save_file(tensors, folder / "model.safetensors")
    return folder / "model.safetensors"


def _left(cache):
    """What lies in the cache besides locks."""
    return [path for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_in_a_pipeline_folder_is_that_pipeline(tmp_path, kind):
    pipeline = _pipeline(kind)
    file = _prepared(tmp_path / "prepared", pipeline, dtype=torch.float16)
    found = resolve(str(file))
    assert found.pipeline is None
    whole = assembled(found)
    held = [name for name in pipeline.components if name.startswith(("text_encoder", "vae"))]
    assert {part for part, origin in whole.origins.items() if origin == file.name} == set(held)
    assert all(whole.origins[part] == "prepared" for part in pipeline.components if part.startswith("tokenizer"))
    assert whole.denoiser == file
    # Vanilla diffusers loads it, and every tensor is the one that was put into the checkpoint, as it was stored.
    again = DiffusionPipeline.from_pretrained(whole.pipeline, **{whole.denoiser_part: None})
    assert type(again) is type(pipeline)
    assert type(again.scheduler) is type(pipeline.scheduler)
    assert again.scheduler.config.items() <= pipeline.scheduler.config.items()
    for part in held:
        expected, actual = getattr(pipeline, part).state_dict(), getattr(again, part).state_dict()
        assert set(expected) == set(actual)
        assert all(torch.equal(actual[n], v.half().float()) for n, v in expected.items()), part
        files = list((whole.pipeline / part).glob("*.safetensors"))
        assert files
        for weights in files:
            stored = {n: v.dtype for n, v in load_file(weights).items()}
            # transformers keeps T5's last projections in float32.
            assert {d for n, d in stored.items() if ".wo." not in n} == {torch.float16}
    loaded = load(found)
    assert loaded.reference.pipeline == whole.pipeline
    assert loaded.codec is not None


def test_what_the_checkpoint_does_not_hold_is_linked(tmp_path):
    pipeline = _pipeline("pipe_sd3")
    encoders = [name for name in pipeline.components if name.startswith("text_encoder")]
    file = _prepared(tmp_path / "prepared", pipeline, "text_encoders.", kept=encoders)
    whole = assembled(resolve(str(file)))
    assert {whole.origins[part] for part in encoders} == {"prepared"}
    assert whole.origins["vae"] == file.name
    for part in encoders:
        weights = whole.pipeline / part / "model.safetensors"
        assert weights.samefile(file.parent / part / "model.safetensors")


@pytest.mark.parametrize("held", [True, False])
def test_an_encoder_that_is_left_out_is_neither_converted_nor_looked_for(tmp_path, held):
    pipeline = _pipeline("pipe_sd3")
    file = _prepared(tmp_path / "prepared", pipeline, *(() if held else ("text_encoders.t5xxl.",)))
    shutil.rmtree(tmp_path / "prepared" / "tokenizer_3")
    if not held:
        shutil.rmtree(tmp_path / "prepared" / "text_encoder_3")
    found = resolve(str(file))
    less = leave_out(found, registry.find(found.class_name), ["text_encoder_3"])
    whole = assembled(less)
    absent = {"text_encoder_3": None, "tokenizer_3": None}
    assert whole.left_out == list(absent) and not {*absent} & {*whole.origins}
    assert not any((whole.pipeline / part).exists() for part in absent)
    again = DiffusionPipeline.from_pretrained(whole.pipeline, transformer=None, **absent)
    assert again.text_encoder_3 is None and again.text_encoder_2 is not None


def test_a_folder_that_changed_is_not_the_one_that_was_put_together(tmp_path):
    file = _prepared(tmp_path / "prepared", _pipeline("pipe_stable_diffusion"))
    first = assembled(resolve(str(file)))
    assert assembled(resolve(str(file))).pipeline == first.pipeline
    config = file.parent / "tokenizer" / "tokenizer_config.json"
    config.write_text(config.read_text() + "\n")
    second = assembled(resolve(str(file)))
    assert second.pipeline != first.pipeline
    assert (second.pipeline / "tokenizer" / config.name).read_text() == config.read_text()


def test_parts_that_are_not_whole_or_do_not_fit_leave_nothing_behind(tmp_path, cache, monkeypatch):
    pipeline = _pipeline("pipe_stable_diffusion")
    file = _prepared(tmp_path / "half", pipeline, "cond_stage_model.transformer.text_model.final_layer_norm.bias")
    with pytest.raises(UsageError, match=r"text_encoder .* lacks 1 tensor.*final_layer_norm.bias"):
        assembled(resolve(str(file)))
    shutil.rmtree(file.parent / "tokenizer")
    with pytest.raises(UsageError, match=r"incomplete: tokenizer \(no such folder\)"):
        assembled(resolve(str(file)))
    file = _prepared(tmp_path / "whole", pipeline)
    (file.parent / "vae" / "config.json").unlink()
    with pytest.raises(UsageError, match="no config for the vae"):
        assembled(resolve(str(file)))
    pipeline.save_pretrained(file.parent)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(linking.shutil, "disk_usage", lambda _: usage(1000, 0, 1000))
    with pytest.raises(RunStopped, match="1,000 bytes left"):
        assembled(resolve(str(file)))
    assert _left(cache) == []


def test_eight_bits_do_for_text_encoders_alone(tmp_path, cache):
    pipeline = _pipeline("pipe_sd3")
    file = _prepared(tmp_path / "prepared", pipeline, dtype=torch.float16)
    tensors = load_file(file)
    small = {n: v.to(torch.float8_e4m3fn) if ".t5xxl." in n else v for n, v in tensors.items()}
    save_file(small, file)
    whole = assembled(resolve(str(file)))
    again = DiffusionPipeline.from_pretrained(whole.pipeline, transformer=None)
    name = "text_encoders.t5xxl.transformer.shared.weight"
    assert torch.equal(again.text_encoder_3.shared.weight, small[name].float())
    assert not torch.equal(again.text_encoder_3.shared.weight, tensors[name].float())

    shutil.rmtree(cache)
    save_file({**small, name.replace("shared.weight", "scaled_fp8"): torch.zeros(2)}, file)
    with pytest.raises(UsageError, match=r"quantised .*scaled_fp8"):
        assembled(resolve(str(file)))
    assert _left(cache) == []
    save_file({n: v.to(torch.float8_e4m3fn) if "diffusion_model" in n else v for n, v in tensors.items()}, file)
    with pytest.raises(UsageError, match=r"stored in 8 bits \(model\.diffusion_model"):
        resolve(str(file))


def _published(folder, monkeypatch):
    """A checkpoint that is recognised as a small Stable Diffusion 1, and the folder of its pipeline on the Hub."""
    # By its width of text it is recognised.
    monkeypatch.setitem(pipe_stable_diffusion.UNET, "cross_attention_dim", 768)
    config = dict(pipe_stable_diffusion.UNET)
    known = {"v1": {**KNOWN["v1"], "name": "Small Diffusion", "repository": NAME, "config": config}}
    (folder / "originals.json").write_text(json.dumps(known))
    monkeypatch.setattr(layouts, "_ORIGINALS", folder / "originals.json")
    pipeline = pipe_stable_diffusion.pipeline()
    pipeline.save_pretrained(folder / "published")
    save_file(originals.whole(pipeline), folder / "small.safetensors")
    return folder / "small.safetensors", folder / "published"


def test_from_one_file_to_a_student_with_the_rest_from_the_hub(tmp_path, hub, monkeypatch):
    file, published = _published(tmp_path, monkeypatch)
    commit = hub.add(NAME, published)
    planned = diffcompress.plan(str(file), ratio=0.4)
    assert any("tokenizer from 'someone/stable-diffusion' on the Hub" in note for note in planned["notes"])
    assert hub.requests == []

    result = diffcompress.shrink(str(file), ratio=0.4, output=str(tmp_path / "run"), overrides=SMALL)
    assert 0 < result["student"]["params"] < result["teacher"]["params"]
    # Configs and tokenizer alone.
    assert not [request for request in hub.requests if "safetensors" in request]
    record = json.loads((tmp_path / "run" / "pipeline" / "diffcompress.json").read_text())
    assert list(record["teacher"]["files"]) == [file.name]
    parts = {"text_encoder": file.name, "vae": file.name, "tokenizer": f"{NAME}@{commit}"}
    assert record["teacher"]["parts"] == parts
    assert record["license"]["id"] == "unknown"
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["provenance"]["teacher"]["parts"] == parts

    # Once for good: neither network nor the Hub's cache is needed any more.
    shutil.rmtree(tmp_path / "home")
    hub.requests.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert assembled(resolve(str(file))).origins == parts
    assert hub.requests == []

    shutil.copytree(tmp_path / "run" / "pipeline", tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "assets")
    drawn = spawn("-I", "-c", CLEAN, str(tmp_path / "elsewhere"), cwd=tmp_path)
    assert drawn.returncode == 0, drawn.stderr
    assert drawn.stdout.strip() == "StableDiffusionPipeline (1, 16, 16, 3) False"


def test_offline_with_nothing_at_hand_it_is_said_what_is_missing(tmp_path, cache, monkeypatch):
    file, _ = _published(tmp_path, monkeypatch)
    found = resolve(str(file))
    for call in (lambda: fetch(found), lambda: load(found)):
        with pytest.raises(
            AccessError, match=r"small\.safetensors holds no tokenizer: 'someone/stable-diffusion'"
        ) as e:
            call()
        assert e.value.exit_status == ExitStatus.NO_ACCESS
        assert "without --offline" in e.value.hint
        assert "model_index.json" in e.value.hint
    assert _left(cache) == []


def test_encoders_that_the_file_lacks_are_downloaded_too(tmp_path, hub, monkeypatch):
    file, published = _published(tmp_path, monkeypatch)
    hub.add(NAME, published)
    kept = {name: value for name, value in load_file(file).items() if name.startswith("model.diffusion_model.")}
    save_file(kept, file)
    found = resolve(str(file))
    assert found.surroundings.others == ["text_encoder", "tokenizer", "vae"]
    whole = assembled(found)
    assert {origin.partition("@")[0] for origin in whole.origins.values()} == {NAME}
    again = DiffusionPipeline.from_pretrained(whole.pipeline, unet=None)
    assert torch.equal(
        again.vae.decoder.conv_in.weight, DiffusionPipeline.from_pretrained(published).vae.decoder.conv_in.weight
    )


def test_a_pickled_checkpoint_brings_its_parts_too(tmp_path):
    file = _prepared(tmp_path / "prepared", _pipeline("pipe_stable_diffusion"))
    pickled = file.with_suffix(".ckpt")
    torch.save(load_file(file), pickled)
    whole, other = assembled(resolve(str(pickled))), assembled(resolve(str(file)))
    assert whole.origins["vae"] == "model.ckpt"
    files = list(Path(other.pipeline).rglob("*.safetensors"))
    assert files
    for path in files:
        assert (whole.pipeline / path.relative_to(other.pipeline)).read_bytes() == path.read_bytes()
    assert replace(whole, id=other.id).scheduler == other.scheduler
