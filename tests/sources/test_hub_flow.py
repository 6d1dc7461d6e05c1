"""From a Hub id to a student, in processes of their own: plan without weights, then the whole job, then offline."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from diffusers import DDPMPipeline

from tests import tiny, warm
from tests.cli.command import spawn
from tests.hub_server import HubServer
from tests.jobs.tiny_teacher import settings

NAME = "someone/ddpm"
RATIO = ("--ratio", "0.3")


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    with HubServer(folder / "pushed") as server:
        saved = tiny.save_pipeline(folder / "ddpm", num_train_timesteps=50)
        (saved / "README.md").write_text("---\nlicense: mit\n---\n")
        tiny.unet().half().save_pretrained(saved / "unet", variant="fp16")
        server.add(NAME, saved)
        yield server


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def client(hub, home, tmp_path_factory):
    with warm.started(str(tmp_path_factory.mktemp("warm")), hub.environment(home)) as client:
        yield client


def test_from_an_id_to_a_student(hub, home, client, tmp_path):
    commit = hub.repositories[NAME].refs["main"]
    whole = sum(len(v) for k, v in hub.files(NAME).items() if k.endswith(".safetensors"))

    planned = spawn("-m", "diffcompress", "plan", f"{NAME}@main", *RATIO, "--json", **client)
    assert planned.returncode == 0, planned.stderr
    assert any(commit in note for note in json.loads(planned.stdout)["notes"])
    assert json.loads(planned.stdout)["pipeline_bytes"] > json.loads(planned.stdout)["size_bytes"]
    assert list(home.rglob("*.safetensors")) == []
    assert 0 < sum(n for path, n in hub.bytes_sent.items() if path.startswith("/blobs/")) < 110_000 < whole

    shrink = [
        "-m",
        "diffcompress",
        "shrink",
        NAME,
        *RATIO,
        "--json",
        *settings(stages__0__num_steps=2, stages__1__num_steps=2),
    ]
    shrunk = spawn(*shrink, cwd=tmp_path, **client)
    assert shrunk.returncode == 0, shrunk.stderr
    assert commit in shrunk.stderr
    run = tmp_path / "ddpm-0.3"
    assert json.loads(shrunk.stdout)["run"] == run.name
    record = json.loads((run / "pipeline" / "diffcompress.json").read_text())
    assert (record["teacher"]["id"], record["teacher"]["revision"]) == (NAME, commit)
    assert record["license"]["id"] == "mit"
    assert [f.name for f in home.rglob("*.safetensors")] == ["diffusion_pytorch_model.safetensors"]
    student: Any = DDPMPipeline.from_pretrained(run / "pipeline")
    assert student(num_inference_steps=2, output_type="np").images.shape == (1, 8, 8, 1)
    assert student.unet.dtype == torch.float32

    hub.requests.clear()
    again = spawn("-m", "diffcompress", "plan", NAME, *RATIO, "--offline", "--json", **client)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["params"] == json.loads(planned.stdout)["params"]
    assert hub.requests == []


def test_no_access_is_exit_code_4(hub, tmp_path):
    client = hub.environment(tmp_path / "home", token=None)
    outcome = spawn("-m", "diffcompress", "shrink", "someone/nothing", *RATIO, cwd=tmp_path, **client)
    assert (outcome.returncode, outcome.stdout) == (4, "")
    assert "hf auth login" in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert [f.name for f in tmp_path.iterdir() if f.name != "home"] == []
