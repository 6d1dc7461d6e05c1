"""One small run through shrink, evaluate and report as a user types them: both kinds of output, gates and codes."""

from __future__ import annotations

import json

import pytest

from tests.cli.command import run
from tests.jobs.tiny_teacher import save_teacher, settings


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("commands")


@pytest.fixture(scope="module")
def arguments(root):
    teacher = save_teacher(root / "teacher")
    return ["shrink", teacher, "--ratio", "0.3", "--output", root / "run", "--device", "cpu", *settings()]


@pytest.fixture(scope="module")
def first(arguments):
    return run(*arguments)


def test_shrink_tells_people_on_stdout_and_its_progress_on_stderr(first, root):
    assert first.code == 0, first.stderr
    for said in (str(root / "run" / "pipeline"), str(root / "run" / "report.html"), "asked 0.3", "params"):
        assert said in first.stdout
    params = next(line for line in first.stdout.splitlines() if line.startswith("params"))
    assert len(params.split()) == 6  # name, student, teacher, nothing for the others, unit
    assert all(line == line.rstrip() for line in first.stdout.splitlines())
    assert "1/" in first.stderr
    assert "loss" in first.stderr
    assert "loss " not in first.stdout


def test_the_same_command_again_finds_it_done_and_prints_json(first, arguments, root):
    again = run(*arguments, "--json", "--quiet")
    assert (again.code, again.stderr) == (0, "")
    result = json.loads(again.stdout)
    assert result["pipeline"] == str(root / "run" / "pipeline")
    assert set(result["teacher"]) == {"id", "params"}
    assert set(result["student"]) == {"params", "ratio", "requested_ratio", "config", "prediction_type"}


def test_another_ratio_in_the_same_folder_is_refused(first, arguments):
    outcome = run(*[{"0.3": "0.4"}.get(str(a), a) for a in arguments])
    assert outcome.code == 2
    assert "not this run" in outcome.stderr


@pytest.mark.parametrize(("gate", "code"), [("params<1M", 0), ("params<10", 3), ("params<<10", 2), ("parms<10", 2)])
def test_gates_decide_the_exit_code(first, root, gate, code):
    small = ["--num-samples", "4", "--sampler-steps", "2", "--device", "cpu", "--output", root / "evaluation"]
    outcome = run("evaluate", root / "run" / "pipeline", "--gate", gate, "--json", "--quiet", *small)
    assert outcome.code == code, outcome.stderr
    if code == 2:
        assert outcome.stdout == ""
        return
    (told,) = json.loads(outcome.stdout)["gates"]
    assert (told["expr"], told["passed"]) == (gate, code == 0)
    assert ("gate missed: params<10" in outcome.stderr) == (code == 3)


def test_report_redraws(first, root):
    page = root / "run" / "report.html"
    page.unlink()
    outcome = run("report", root / "run")
    assert outcome.code == 0, outcome.stderr
    assert str(page) in outcome.stdout
    assert page.exists()


@pytest.fixture(scope="module")
def gated(first, root):
    """An evaluation of the run's own pipeline in its default place, with gates."""
    small = ["--teacher", root / "teacher", "--num-samples", "4", "--sampler-steps", "2", "--device", "cpu"]
    gates = ["--gate", "params<10", "--gate", "agreement>-9", "--gate", "fd<1"]
    assert run("evaluate", root / "run" / "pipeline", *small, *gates).code == 3
    return root / "run" / "evaluation" / "evaluation.json"


def test_gates_of_an_evaluation_reach_report_and_card(gated, root):
    told = json.loads(run("report", root / "run", "--json").stdout)
    assert [(one["expr"], one["passed"]) for one in told["gates"]] == [
        ("params<10", False), ("agreement>-9", True), ("fd<1", False),
    ]  # fmt: skip
    assert told["gates_protocol"]["num_samples"] == 4
    page, card = (root / "run" / name for name in ("report.html", "pipeline/README.md"))
    for text, name in ((page.read_text(), "params&lt;10"), (card.read_text(), "`params<10`")):
        for said in (name, "missed", "passed", "DDIM 2 steps", "no perceptual metric computed"):
            assert said in text


@pytest.mark.parametrize("of", ["student", "teacher"])
def test_an_evaluation_of_other_weights_or_against_another_teacher_says_nothing(gated, root, of):
    file, text = gated, gated.read_text()
    found = json.loads(text)
    found[of]["fingerprint"] = "0" * 64
    file.write_text(json.dumps(found))
    told = json.loads(run("report", root / "run", "--json").stdout)
    assert (told["gates"], told["gates_protocol"]) == ([], {})
    assert "params<10" not in (root / "run" / "pipeline" / "README.md").read_text()
    file.write_text(text)
