"""Layouts, tensor names and classes of diffusers' first years, as repositories on the Hub still have them."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest
import torch
from diffusers import DDPMPipeline, DiTPipeline
from safetensors.torch import load_file, save_file

from diffcompress.jobs.plan import plan
from diffcompress.pipeline.load import load
from diffcompress.sources.resolve import resolve
from tests import tiny, warm
from tests.cli.command import spawn
from tests.families import pipe_dit
from tests.hub_server import HubServer
from tests.jobs.tiny_teacher import settings

THEN = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def former_name(name: str) -> str:
    for now, then in THEN.items():
        name = name.replace(f".{now}.", f".{then}.") if ".attentions." in name else name
    return name


@pytest.fixture(scope="module")
def flat(tmp_path_factory):
    """As google/ddpm-cat-256: everything in the root, attention under its former names."""
    whole = tiny.save_pipeline(tmp_path_factory.mktemp("whole") / "ddpm", num_train_timesteps=50)
    folder = tmp_path_factory.mktemp("flat")
    shutil.copyfile(whole / "model_index.json", folder / "model_index.json")
    shutil.copyfile(whole / "scheduler" / "scheduler_config.json", folder / "scheduler_config.json")
    shutil.copyfile(whole / "unet" / "config.json", folder / "config.json")
    name = "diffusion_pytorch_model.safetensors"
    tensors = {former_name(name): value for name, value in load_file(whole / "unet" / name).items()}
    assert any("query" in name for name in tensors)
    save_file(tensors, folder / name)
    return folder


def test_a_flat_pipeline_with_former_attention_is_what_diffusers_loads(flat):
    teacher, theirs = load(resolve(str(flat))), DDPMPipeline.from_pretrained(flat)
    assert teacher.noise.num_timesteps == 50
    noisy, timestep = torch.randn(2, 1, 8, 8), torch.tensor([3, 40])
    with torch.no_grad():
        assert torch.equal(teacher.predict(noisy, timestep, {}), theirs.unet(noisy, timestep).sample)


def test_from_a_flat_repository_to_a_student(flat, tmp_path):
    with HubServer(tmp_path / "hub") as hub:
        hub.add("someone/flat", flat)
        steps = settings(stages__0__num_steps=2, stages__1__num_steps=2)
        command = ["-m", "diffcompress", "shrink", "someone/flat", "--ratio", "0.3", "--json", *steps]
        (tmp_path / "warm").mkdir()
        with warm.started(str(tmp_path / "warm"), hub.environment(tmp_path / "home")) as client:
            shrunk = spawn(*command, cwd=tmp_path, **client)
    assert shrunk.returncode == 0, shrunk.stderr
    student: Any = DDPMPipeline.from_pretrained(tmp_path / json.loads(shrunk.stdout)["pipeline"])
    assert student(num_inference_steps=2, output_type="np").images.shape == (1, 8, 8, 1)


def test_a_dit_under_its_former_class(tmp_path):
    """DiT-XL/2 and PixArt-alpha are Transformer2DModel on the Hub, with values that the class of now does not take."""
    pipe_dit.pipeline().save_pretrained(tmp_path)
    file = tmp_path / "transformer" / "config.json"
    config = json.loads(file.read_text())
    former = {"_class_name": "Transformer2DModel", "num_vector_embeds": None, "double_self_attention": False}
    file.write_text(json.dumps(config | former))
    index = json.loads((tmp_path / "model_index.json").read_text())
    index["transformer"][1] = "Transformer2DModel"
    (tmp_path / "model_index.json").write_text(json.dumps(index))

    teacher, theirs = load(resolve(str(tmp_path))), DiTPipeline.from_pretrained(tmp_path)
    given = teacher.example_inputs(2)
    noisy, timestep = torch.randn_like(given.pop("noisy")), given.pop("timestep")
    with torch.no_grad():
        expected = theirs.transformer(noisy, timestep, given["class_labels"]).sample
    assert torch.equal(teacher.predict_all(noisy, timestep, given), expected)
    assert plan(str(file), ratio=0.4622)["family"] == "DiTTransformer2DModel"
