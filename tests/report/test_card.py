"""The model card and diffcompress.json: what a stranger learns from the exported folder alone."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import yaml
from huggingface_hub import ModelCard

from diffcompress.cli.app import app
from diffcompress.export import provenance
from diffcompress.export.weights import export_pipeline
from diffcompress.pipeline.load import LoadedPipeline, load
from diffcompress.recipe import parse
from diffcompress.records.provenance import Provenance
from diffcompress.records.run_files import read_json, write_json
from diffcompress.report import card
from diffcompress.sources.hub_names import public_name
from diffcompress.sources.resolve import resolve
from tests import tiny
from tests.cli.command import run as cli
from tests.families import pipe_dit
from tests.report.synthetic_run import write_run


@pytest.fixture
def folder(tmp_path: Path, teacher: LoadedPipeline, student: diffusers.UNet2DModel) -> Path:
    given = {"recipe": {}, "seed": 7, "bank": "b" * 64, "method": "lift-place"}
    return export_pipeline(student, teacher, write_run(tmp_path / "run"), dtype=torch.float32, provenance=given)


def card_of(folder: Path, **changes: object) -> ModelCard:
    """The card as it would be with other provenance."""
    from diffcompress.records.run_folder import RunFolder
    from diffcompress.report import reading

    record = Provenance.model_validate(read_json(folder / "diffcompress.json") | changes)
    return ModelCard(card.render(record, reading.collect(RunFolder(folder.parent))))


def test_the_card_repeats_the_run(folder: Path) -> None:
    card = ModelCard.load(folder / "README.md")
    recipe = re.search(r"```yaml\n(.*?)```", card.text, re.DOTALL)[1]
    assert recipe == (folder.parent / "recipe.yaml").read_text()
    assert parse(recipe, "the card").seed == 7
    command = re.search(r"```sh\n(.*?)\n```", card.text, re.DOTALL)[1]
    words = shlex.split(command)
    assert words[:4] == ["diffcompress", "shrink", "teacher", "--ratio"]
    options = set(re.findall(r"--[a-z-]+", cli("shrink", "--help").stdout))
    assert {word for word in words if word.startswith("--")} <= options
    assert app.info.name == words[0]


@pytest.mark.parametrize(
    ("typed", "name", "expected"),
    [
        ("models/my model.safetensors", "my model", "my model.safetensors"),
        ("../teachers/my.teacher/", "my.teacher", "my.teacher"),
        (".", "ddpm", "ddpm"),
    ],
)
def test_the_command_names_a_teacher_that_lies_on_a_disk(folder: Path, typed: str, name: str, expected: str) -> None:
    record = read_json(folder / "diffcompress.json")
    record["teacher"] |= {"id": None, "name": name}
    asked = {"teacher": typed, "target": {"ratio": 0.3}, "data": ".", "prompts": "me/prompts.txt"}
    words = shlex.split(card.repeat(Provenance.model_validate(record), asked))
    assert words[2] == expected
    assert words[words.index("--data") + 1] == "."
    assert words[words.index("--prompts") + 1] == "prompts.txt"


def test_of_a_path_the_last_part_is_told_and_of_a_data_set_its_commit() -> None:
    data_set = f"someone/photos@{'0a' * 20}"
    names = {"someone/photos": "photos", "/home/me/photos/": "photos", ".": ".", data_set: data_set, None: None}
    assert {path: public_name(path) for path in names} == names


def test_the_card_says_what_limits_it(folder: Path) -> None:
    text = ModelCard.load(folder / "README.md").text
    for fact in (
        "not FID",
        "one seed (7)",
        "Intervals are over samples",
        "How small others went: UNet2DModel students",
    ):
        assert fact in text


def test_a_teacher_on_the_hub_is_the_base_model_at_its_commit(folder: Path) -> None:
    teacher = read_json(folder / "diffcompress.json")["teacher"]
    assert card_of(folder).data.get("base_model") is None
    card = card_of(folder, teacher=teacher | {"id": "someone/model", "revision": "c0ffee"})
    assert card.data.get("base_model") == "someone/model"
    assert "at commit `c0ffee`" in card.text
    assert "diffcompress shrink someone/model@c0ffee --ratio" in card.text


@pytest.mark.parametrize(
    ("parts", "denoiser", "tag"),
    [
        (("unet", "scheduler"), "UNet2DModel", "unconditional-image-generation"),
        (("transformer", "vae"), "DiTTransformer2DModel", "unconditional-image-generation"),
        (("transformer", "vae", "tokenizer", "text_encoder"), "SD3Transformer2DModel", "text-to-image"),
        (("transformer", "tokenizer_2"), "FluxTransformer2DModel", "text-to-image"),
        (("transformer", "tokenizer"), "WanTransformer3DModel", "text-to-video"),
    ],
)
def test_what_the_pipeline_does(folder: Path, parts: tuple[str, ...], denoiser: str, tag: str) -> None:
    assert provenance.pipeline_tag({key: ["diffusers", "X"] for key in parts}, denoiser) == tag
    card = card_of(folder, pipeline_tag=tag)
    assert card.data.get("pipeline_tag") == tag
    assert ('pipeline("' in card.text) == tag.startswith("text-to-")
    compile(re.search(r"```python\n(.*?)```", card.text, re.DOTALL)[1], "card", "exec")


@pytest.mark.parametrize(
    ("num_classes", "call"), [(10, "class_labels=[0], guidance_scale=1.0"), (1000, "class_labels=[0]")]
)
def test_a_student_of_a_dit_samples_as_the_card_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_classes: int, call: str
) -> None:
    """DiTPipeline's guidance takes label 1000 for none, which a smaller table does not have."""
    pipe_dit.pipeline(num_classes).save_pretrained(tmp_path / "teacher")
    teacher = load(resolve(str(tmp_path / "teacher")))
    folder = export_pipeline(teacher.denoiser, teacher, write_run(tmp_path / "run"), dtype=torch.float32)
    told = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[1]
    assert f"pipeline({call})" in told
    monkeypatch.chdir(tmp_path)
    exec(told.replace(card.ELSEWHERE, str(folder)), {})
    assert (tmp_path / "sample.png").is_file()


def test_results_only_against_data_that_others_can_get(folder: Path) -> None:
    file = folder.parent / "metrics.json"
    metrics = read_json(file)
    assert metrics["metrics"]["fd_demo"]["reference"] == "train"
    for reference, expected in (("fashion-mnist train", 1), ("data", 0), (None, 0)):
        metrics["metrics"]["fd_demo"]["reference"] = reference
        write_json(file, metrics)
        results = card_of(folder).data.get("eval_results") or []
        assert len(results) == expected
    metrics["metrics"]["fd_demo"]["reference"] = "fashion-mnist train"
    metrics["metrics"]["fd_demo_corrected"] = metrics["metrics"]["fd_demo"] | {"value": 5.4321}
    write_json(file, metrics)
    assert "5.43" not in card_of(folder).content
    (only,) = card_of(folder).data.get("eval_results")
    assert (only.metric_type, only.metric_value, only.dataset_type) == ("fd_demo", 9.31, "fashion-mnist")
    assert "2,048 samples" in only.metric_name
    assert only.metric_args == {"sampler": "ddim", "sampler_steps": 25, "seed": 7, "low": 8.87, "high": 9.76}


def test_provenance_is_complete_and_names_no_path(tmp_path: Path, folder: Path, teacher: LoadedPipeline) -> None:
    text = (folder / "diffcompress.json").read_text()
    assert str(tmp_path) not in text
    record = json.loads(text)
    weights = teacher.reference.pipeline / "unet" / "diffusion_pytorch_model.safetensors"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert record["teacher"]["files"] == {"unet/diffusion_pytorch_model.safetensors": digest}
    assert record["teacher"]["id"] is None
    assert record["teacher"]["revision"] is None
    assert record["seeds"] == {"run": 7, "evaluation": 7}
    assert record["bank"] == "b" * 64
    assert record["student"]["ratio"] == 0.04975
    assert set(record["versions"]) >= {"diffcompress", "torch", "diffusers", "huggingface-hub", "python"}


def test_a_demo_keeps_its_name(tmp_path: Path, student: diffusers.UNet2DModel) -> None:
    demo = load(resolve("demo"))
    folder = export_pipeline(student, demo, write_run(tmp_path / "run"), dtype=torch.float16)
    record = read_json(folder / "diffcompress.json")
    assert (record["teacher"]["id"], record["license"]["id"]) == ("demo", "apache-2.0")
    assert "diffcompress shrink demo --ratio" in (folder / "README.md").read_text()


def test_the_front_matter_is_plain_yaml(folder: Path) -> None:
    front = yaml.safe_load((folder / "README.md").read_text().split("---")[1])
    assert front["license"] == "other"
    assert front["license_name"] == "unknown"
    assert "model-index" in front


def test_code_for_classes_samples_whatever_the_shape_and_the_scheduler(folder: Path, tmp_path: Path) -> None:
    model = tiny.unet(num_class_embeds=3, sample_size=(8, 16))
    scheduler = diffusers.EulerDiscreteScheduler(num_train_timesteps=20)
    diffusers.DDPMPipeline(model, scheduler).save_pretrained(tmp_path)
    scope: dict[str, Any] = {}
    told = Provenance.model_validate(read_json(folder / "diffcompress.json") | {"num_classes": 3})
    exec(card.usage(told, str(tmp_path)), scope)
    assert scope["image"].shape == (1, 1, 8, 16)
    assert scope["scheduler"].is_scale_input_called
