"""From a data set on the Hub to a student and its scores."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from diffcompress import recipe as recipes
from diffcompress.bank import bank as banks
from diffcompress.images import images
from diffcompress.images.texts import texts_for
from diffcompress.jobs.evaluate import _resolved, evaluate
from diffcompress.pipeline.encoding import with_prompts
from diffcompress.pipeline.load import load
from diffcompress.records.request import EvaluateOptions
from diffcompress.runtime import Progress, start
from diffcompress.sources.resolve import resolve
from tests import tiny
from tests.cli.command import run
from tests.families.pipe_stable_diffusion import pipeline
from tests.images.hub_data import FILES, TABLE, save_files
from tests.images.notes import Notes
from tests.jobs.tiny_teacher import settings

pytest.importorskip("datasets")
SHORT = settings(stages__0__num_steps=2, stages__1__num_steps=2, bank__num_samples=16)


def test_shrink_on_a_data_set_then_offline(hub, tmp_path):
    teacher = tiny.save_pipeline(tmp_path / "teacher", num_train_timesteps=50, num_classes=3)
    asked = ["shrink", teacher, "--ratio", "0.3", "--output", tmp_path / "run", "--json", "--data", FILES, *SHORT]
    done = run(*asked)
    assert done.code == 0, done.stderr
    commit = hub.repositories[f"datasets/{FILES}"].refs["main"]
    assert f"'{FILES}' is taken at commit {commit}" in done.stderr
    record = json.loads((tmp_path / "run" / "bank" / "bank.json").read_text())
    assert (record["source"], record["num_samples"]) == (f"{FILES}@{commit}", 16)
    provenance = json.loads((tmp_path / "run" / "pipeline" / "diffcompress.json").read_text())
    assert record["key"] in json.dumps(provenance)
    hub.requests.clear()
    again = run(*asked, "--offline")
    assert again.code == 0, again.stderr
    assert json.loads(again.stdout)["student"] == json.loads(done.stdout)["student"]
    assert hub.requests == []


def test_refusals_have_their_exit_codes(hub, tmp_path):
    classes = tiny.save_pipeline(tmp_path / "classes", num_classes=2)
    for data, code, said in (("someone/nothing", 4, "not on the Hub"), (FILES, 2, "3 classes, the teacher has 2")):
        asked = ["--ratio", "0.3", "--data", data, "--output", tmp_path / f"run-{code}", *SHORT]
        outcome = run("shrink", classes, *asked)
        assert outcome.code == code, outcome.stderr
        assert said in outcome.stderr
        assert "hint:" in outcome.stderr


def test_captions_of_a_data_set_are_the_prompts_of_a_text_teacher(hub, tmp_path):
    pipeline().save_pretrained(tmp_path / "teacher")
    teacher = load(resolve(str(tmp_path / "teacher")))
    recipe = recipes.load("default", ("bank.num_samples=6",))
    texts = texts_for(teacher, recipe, TABLE, None)
    assert len(texts) == 6
    runtime = start("cpu")
    teacher = with_prompts(teacher, texts, tmp_path / "conditions", runtime, Progress(), recipe.bank.text_length)
    own = images.read_for(TABLE, teacher, texts, 6, Progress())
    bank = banks.fill(tmp_path / "bank", teacher, recipe.bank, 0, own, runtime, Progress())
    assert bank.clean.shape[1:] == teacher.sample_shape
    assert sorted(texts[row] for row in bank.condition.tolist()) == sorted(images.captions_of(TABLE, 6, Progress()))


def test_a_student_on_the_hub_is_scored_in_the_working_directory(hub, tmp_path, monkeypatch):
    hub.add("someone/student", tiny.save_pipeline(tmp_path / "student", num_train_timesteps=50))
    stream = np.random.default_rng(0)
    folder = save_files(tmp_path / "noise", {})
    folder.mkdir()
    for i in range(20):
        Image.fromarray(stream.integers(0, 255, (8, 8), dtype=np.uint8)).save(folder / f"{i}.png")
    commit = hub.add("datasets/someone/noise", folder)
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    progress = Notes()
    found = evaluate(
        "someone/student", data="someone/noise", num_samples=12, sampler_steps=2, device="cpu", progress=progress
    )
    assert found["protocol"]["agreement_clean"] == "data"
    assert any(commit in note for note in progress.notes)
    assert (here / "student-evaluation" / "evaluation.json").is_file()
    several = EvaluateOptions(["someone/student", tmp_path / "student"], data="someone/noise")
    assert _resolved(several).asked.data == f"someone/noise@{commit}"
    assert not list((tmp_path / "home").rglob("evaluation*"))
