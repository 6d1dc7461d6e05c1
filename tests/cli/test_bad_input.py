"""Bad input: one sentence with the value, a hint, exit code 2, nothing on stdout and nothing left behind."""

from __future__ import annotations

import json
import os

import pytest
from PIL import Image

from diffcompress.records.request import PlanOptions
from diffcompress.records.run_files import read_json, write_json
from diffcompress.sources.reference import DEMO_FOLDER
from tests.cli.command import run, spawn
from tests.jobs.tiny_teacher import save_teacher, settings

SHRINK = ("shrink", "demo")
RATIO = ("--ratio", "0.05")


@pytest.fixture(autouse=True)
def _inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([*SHRINK, "--ratio", "0"], "ratio 0 is not between 0 and 1"),
        ([*SHRINK, "--ratio", "1"], "ratio 1 is not between 0 and 1"),
        ([*SHRINK, "--ratio=-1"], "ratio -1 is not between 0 and 1"),
        ([*SHRINK, "--ratio", "nan"], "ratio nan is not between 0 and 1"),
        ([*SHRINK, "--ratio", "inf"], "ratio inf is not between 0 and 1"),
        ([*SHRINK, "--ratio", "abc"], "--ratio 'abc' is not a number"),
        ([*SHRINK, "--ratio", ""], "--ratio '' is not a number"),
        ([*SHRINK, "--ratio", "0.1,0.1"], "names one ratio twice"),
        ([*SHRINK, "--ratio", "0.1,x"], "is not a number"),
        (["plan", "demo", "--ratio", "0.1,x"], "--ratio 'x' is not a number"),
        (["plan", "demo", "--ratio", "0.1,2"], "ratio 2 is not between 0 and 1"),
        (SHRINK, "nothing is given"),
        ([*SHRINK, *RATIO, "--params", "1M"], "--ratio and --params are given"),
        ([*SHRINK, "--params", "40X"], "--params '40X'"),
        ([*SHRINK, "--params", "-4"], "--params '-4'"),
        ([*SHRINK, "--size", "80 apples"], "--size '80 apples'"),
        ([*SHRINK, "--size", "0"], "--size '0'"),
        ([*SHRINK, "--size", "1e400"], "--size '1e400'"),
        (["evaluate", "demo", "--interval", "narrow"], "--interval 'narrow'"),
        (["evaluate", "demo", "--interval", "5"], "--interval 5 is not between 0 and 1"),
        (["evaluate", "demo", "--interval", "5%", "--num-samples", "99"], "--interval is of a distance: 99 samples"),
        ([*SHRINK, *RATIO, "--max-time", "90"], "--max-time '90'"),
        ([*SHRINK, *RATIO, "--max-time", "soon"], "--max-time 'soon'"),
        ([*SHRINK, *RATIO, "--method", "lift-palce"], "did you mean 'lift-place'?"),
        ([*SHRINK, *RATIO, "--dtype", "float8"], "unknown dtype 'float8'"),
        ([*SHRINK, *RATIO, "--seed", "-1"], "'--seed'"),
        ([*SHRINK, *RATIO, "--bogus"], "--bogus"),
        ([*SHRINK, *RATIO, "--prompts", "p.txt"], "takes no text"),
        ([*SHRINK, *RATIO, "--push-to-hub", "me"], "--push-to-hub 'me' is not a repository"),
        ([*SHRINK, *RATIO, "--public"], "--public says nothing without --push-to-hub"),
        ([*SHRINK, *RATIO, "--data", "./images"], "neither a folder on this machine nor a data set's name"),
        (["plan", "./someone/model", *RATIO], "no model at './someone/model'"),
        (["plan", "demo:nothing", *RATIO], "no embedded teacher 'demo:nothing'"),
        (["plan", "demo", *RATIO, "--recipe", "defualt"], "did you mean 'default'?"),
        (["recipes", "show", "nothing"], "no recipe 'nothing'"),
        (["report", "nothing"], "nothing is not a run folder"),
        (["evaluate", "nothing"], "nothing"),
    ],
)
def test_a_clear_sentence_and_exit_code_2(arguments, said, tmp_path):
    outcome = run(*arguments)
    assert outcome.code == 2, outcome.stderr
    assert said in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert outcome.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_every_bad_recipe_key_is_named_at_once():
    bad = ["--set", "training.batchsize=3", "--set", "stages.9.num_steps=1", "--set", "training.learning_rate=fast"]
    outcome = run("plan", "demo", *RATIO, *bad)
    assert outcome.code == 2
    for said in ("training.batchsize: unknown key", "no item '9'", "training.learning_rate"):
        assert said in outcome.stderr


def test_json_keeps_errors_on_stderr():
    outcome = run("plan", "nowhere", *RATIO, "--json")
    assert (outcome.code, outcome.stdout) == (2, "")
    assert "error: no model at 'nowhere'" in outcome.stderr
    assert "hint: " in outcome.stderr


def test_a_config_of_an_unknown_class(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "MyUNet"}))
    outcome = run("plan", tmp_path / "config.json", *RATIO)
    assert outcome.code == 2
    assert "'MyUNet'" in outcome.stderr
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    outcome = run("plan", tmp_path / "model", *RATIO, "--scheduler", tmp_path / "config.json")
    assert (outcome.code, "has no _class_name" in outcome.stderr) == (2, True)


def test_a_part_that_is_not_there_is_missed_before_anything_is_made(tmp_path):
    teacher = save_teacher(tmp_path / "teacher")
    index = json.loads((teacher / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (teacher / "model_index.json").write_text(json.dumps(index))
    outcome = run("shrink", teacher, "--ratio", "0.3", "--output", tmp_path / "run", *settings())
    assert outcome.code == 2
    assert "safety_checker (no such folder)" in outcome.stderr
    assert "[null, null]" in outcome.stderr
    assert not (tmp_path / "run").exists()


def test_images_that_cannot_be_read_make_no_folder_and_replace_none(tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "a.png").write_text("no picture")
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "thesis.txt").write_text("years of work")
    for output in ("new", "kept"):
        outcome = run(*SHRINK, *RATIO, "--data", tmp_path / "own", "--output", tmp_path / output, "--overwrite")
        assert outcome.code == 2
        assert "no readable image" in outcome.stderr
    assert not (tmp_path / "new").exists()
    assert [file.name for file in (tmp_path / "kept").iterdir()] == ["thesis.txt"]


def test_overwriting_never_deletes_what_the_run_reads(tmp_path):
    teacher = save_teacher(tmp_path / "teacher")
    images = tmp_path / "work" / "images"
    images.mkdir(parents=True)
    Image.new("L", (8, 8)).save(images / "a.png")
    before = sorted(tmp_path.rglob("*"))
    for output in (teacher, tmp_path, teacher / "scheduler", teacher / "unet", tmp_path / "work"):
        asked = ("--ratio", "0.3", "--data", images, "--output", output, "--overwrite", *settings())
        outcome = run("shrink", teacher, *asked)
        assert outcome.code == 2
        assert "--overwrite would delete" in outcome.stderr
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("option", ["--output", "--set", "--recipe", "--data", "--prompts"])
def test_bytes_that_are_no_text_are_refused(option, tmp_path):
    outcome = run(*SHRINK, *RATIO, option, os.fsdecode(b"seed=\xff"))
    assert outcome.code == 2
    assert outcome.stderr.startswith("error: 'seed=\\udcff' holds bytes that are no UTF-8\nhint: ")


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_half_characters_of_a_config_are_escaped(encoding, tmp_path):
    file = DEMO_FOLDER / "unet" / "unet" / "config.json"
    (tmp_path / "c.json").write_text(json.dumps(json.loads(file.read_text()) | {"note": "\ud800 \u00e4"}))
    done = spawn("-m", "diffcompress", "plan", str(tmp_path / "c.json"), *RATIO, "--json", PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["config"]["note"] == "\ud800 \u00e4"
    write_json(tmp_path / "kept.json", json.loads(done.stdout))
    assert read_json(tmp_path / "kept.json")["config"]["note"] == "\ud800 \u00e4"


def test_texts_that_are_too_large_are_no_full_disk(tmp_path):
    for name, size, option in (("r.yaml", 1 << 21, "--recipe"), ("p.txt", 1 << 29, "--prompts")):
        (tmp_path / name).touch()
        os.truncate(tmp_path / name, size)
        outcome = run("shrink", "demo:mmdit", *RATIO, option, tmp_path / name)
        assert outcome.code == 2, outcome.stderr
        assert "it has more than" in outcome.stderr


def test_traceback_shows_where():
    outcome = run("plan", "nowhere", *RATIO, "--traceback")
    assert "Traceback" in outcome.stderr
    assert "error: no model at 'nowhere'" in outcome.stderr


def test_dtypes_have_short_names():
    names = ("fp16", "bf16", "fp32", "float16", None)
    assert [PlanOptions("demo", ratio=0.5, dtype=name).dtype for name in names] == [
        "float16", "bfloat16", "float32", "float16", None,
    ]  # fmt: skip
