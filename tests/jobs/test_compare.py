"""Several students under one protocol, on tiny real pipelines."""

from __future__ import annotations

import itertools
import json
import xml.etree.ElementTree as ET

import pytest

from diffcompress.errors import UsageError
from diffcompress.evaluation import frontier
from diffcompress.jobs.comparison import names
from diffcompress.jobs.evaluate import evaluate
from diffcompress.records.evaluation import Evaluation
from diffcompress.report.frontier import draw
from diffcompress.runtime import Progress
from tests.cli.command import run
from tests.evaluation import models
from tests.evaluation.records import evaluation, measured

FAST = {"num_samples": 8, "sampler_steps": 2, "device": "cpu"}


class Heard(Progress):
    def __init__(self):
        self.tasks, self.warnings = [], []

    def update(self, task, done, total, **values):
        self.tasks.append(task)

    def warn(self, text):
        self.warnings.append(text)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("pipelines")
    models.save(root / "teacher")
    models.save(root / "near" / "pipeline", scale=0.9)
    models.save(root / "far" / "pipeline", seed=3)
    return root


@pytest.fixture(scope="module")
def students(root):
    return [str(root / name / "pipeline") for name in ("near", "far")]


@pytest.fixture(scope="module")
def heard():
    return Heard()


@pytest.fixture(scope="module")
def results(root, students, heard):
    gates = ("params<1M", "agreement>0.9")
    return evaluate(
        students, teacher=str(root / "teacher"), output=root / "out", gates=gates, junit=root / "gates.xml",
        progress=heard, **FAST,
    )  # fmt: skip


def test_one_result_for_each_student_under_one_protocol(root, results):
    assert [one["student"]["name"] for one in results] == ["near", "far"]
    assert results[0]["protocol"] == results[1]["protocol"]
    near, far = (one["metrics"]["agreement"]["value"] for one in results)
    assert 0.95 < near < 1 and far < 0.5
    assert json.loads((root / "out" / "comparison.json").read_text()) == results
    for name in ("near", "far"):
        assert (root / "out" / name / "evaluation.json").is_file()


def test_the_teacher_is_sampled_once(heard, results):
    drawn = [task for task, _ in itertools.groupby(heard.tasks)]
    assert drawn.count("sampling the teacher") == 1
    assert drawn.count("sampling the teacher for the probe") == 1
    assert drawn.count("sampling the student") == 2


def test_gates_hold_for_each_student(root, results):
    assert [[gate["passed"] for gate in one["gates"]] for one in results] == [[True, True], [True, False]]
    suite = ET.parse(root / "gates.xml").getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("4", "1")


def test_the_probe_tells_scale_from_detail(results):
    near, far = (one["probe"] for one in results)
    assert (near["metric"], near["reading"]) == ("paired_distance", "train longer")
    assert near["explained"] > 0.9 > far["explained"]


def test_the_frontier_is_drawn(root, results):
    assert [one["unbeaten"] for one in results] == [True, False]  # of one size, the nearer one wins
    svg = (root / "out" / "frontier.svg").read_text()
    for text in ("near", "far", "teacher", "denoiser parameters", "agreement", "8 samples"):
        assert text in svg
    assert ET.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
    assert draw([Evaluation.model_validate(one) for one in results], "agreement") == svg


def test_unbeaten_by_hand():
    def result(params, value):
        return evaluation(params=measured(params), fd=measured(value))

    results = [result(1, 9), result(2, 5), result(3, 6), result(4, 5), result(5, 1)]
    assert frontier.unbeaten(results, "fd") == [True, True, False, False, True]


def test_an_earlier_result_stands_for_its_student(root, students, results):
    heard = Heard()
    earlier = str(root / "out" / "far" / "evaluation.json")
    values = {"teacher": str(root / "teacher"), "output": root / "out", "progress": heard, **FAST}
    again = evaluate([students[0], earlier], **values)
    assert [one["student"]["name"] for one in again] == ["near", "far"]
    assert heard.tasks == []
    for one, other in zip(again, results, strict=True):
        assert one["metrics"]["paired_distance"] == other["metrics"]["paired_distance"]
        assert one["gates"] == []


def test_what_made_an_earlier_result_doubtful_is_told_again(root, results, tmp_path):
    heard, earlier = Heard(), []
    for name, warnings in (("near", []), ("far", ["too good"])):
        told = json.loads((root / "out" / name / "evaluation.json").read_text()) | {"warnings": warnings}
        earlier.append(tmp_path / name / "evaluation.json")
        earlier[-1].parent.mkdir()
        earlier[-1].write_text(json.dumps(told))
    evaluate([str(path) for path in earlier], output=tmp_path / "out", progress=heard, device="cpu")
    assert heard.warnings == ["far: too good"]


def test_protocols_and_teachers_are_not_mixed(root, students, results, tmp_path):
    earlier = str(root / "out" / "far" / "evaluation.json")
    values = {"teacher": str(root / "teacher"), "output": tmp_path / "out", **FAST}
    with pytest.raises(UsageError, match="num_samples is 8 and 9"):
        evaluate([students[0], earlier], **{**values, "num_samples": 9})
    with pytest.raises(UsageError, match="evaluated against another teacher"):
        evaluate([students[0], earlier], **{**values, "teacher": str(root / "far" / "pipeline")})
    with pytest.raises(UsageError, match="results from before have their own number"):
        evaluate([students[0], earlier], **values, interval=0.05)
    changed = json.loads((root / "out" / "near" / "evaluation.json").read_text())
    changed["protocol"]["seed"] = 7
    (tmp_path / "evaluation.json").write_text(json.dumps(changed))
    with pytest.raises(UsageError, match="seed is 0 and 7"):
        evaluate([earlier, str(tmp_path / "evaluation.json")], output=tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_compared(root, students, tmp_path):
    models.save(tmp_path / "small", size=16)
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "plain.json").write_text("{}")
    for others, message in (
        ([str(tmp_path / "small")], r"makes samples of shape \[1, 16, 16\]"),
        ([str(tmp_path / "notes.txt")], "neither a pipeline folder nor a readable result"),
        ([str(tmp_path / "plain.json")], "no result of an evaluation"),
        ([students[0]], "given more than once"),
    ):
        with pytest.raises(UsageError, match=message):
            evaluate([students[0], *others], output=tmp_path / "out", **FAST)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda told: told.update(metrics=None),
        lambda told: told.update(protocol=-1),
        lambda told: told.update(student=[]),
        lambda told: told.update(teacher="teacher"),
        lambda told: told.update(warnings="none"),
        lambda told: told["metrics"].update(agreement=0.9),
        lambda told: told["metrics"]["agreement"].pop("value"),
        lambda told: told["metrics"].pop("params"),
        lambda told: told["metrics"].update(not_computed=0),
    ],
)
def test_a_result_of_another_shape_is_told(root, results, tmp_path, damage):
    whole = root / "out" / "near" / "evaluation.json"
    told = json.loads(whole.read_text())
    damage(told)
    (tmp_path / "evaluation.json").write_text(json.dumps(told))
    with pytest.raises(UsageError, match="no result of an evaluation"):
        evaluate([str(whole), str(tmp_path / "evaluation.json")], output=tmp_path / "out", device="cpu")


def test_without_a_quality_there_is_no_frontier(students, tmp_path):
    heard = Heard()
    evaluate(students, output=tmp_path, progress=heard, **FAST)
    assert not (tmp_path / "frontier.svg").exists()
    assert any("no frontier to draw" in text for text in heard.warnings)


def test_names_tell_students_apart(tmp_path):
    assert list(names(["a/x/pipeline", "b/x/pipeline"]).values()) == ["a-x", "b-x"]
    assert list(names(["run-0.1/pipeline", "run-0.05/pipeline", "demo"]).values()) == ["run-0.1", "run-0.05", "demo"]
    assert list(names(["demo:unet", "who/model"]).values()) == ["demo-unet", "model"]


def test_the_command_line(root, students, results):
    options = ["--teacher", root / "teacher", "--output", root / "out", "--device", "cpu"]
    options += ["--num-samples", "8", "--sampler-steps", "2", "--gate", "agreement>0.9"]
    outcome = run("evaluate", *students, *options, "--json", "--quiet")
    assert outcome.code == 3, outcome.stderr
    told = json.loads(outcome.stdout)
    assert [one["student"]["name"] for one in told] == ["near", "far"]
    assert "gate missed by far: agreement>0.9" in outcome.stderr
    outcome = run("evaluate", *students, *options, "--gate", "kd<1")
    assert outcome.code == 3, outcome.stderr
    header = outcome.stdout.splitlines()[0].split()
    assert header == ["metric", "near", "far", "teacher", "unit"]
    assert "on the size-quality frontier: near" in outcome.stdout
    assert "num samples       8" in outcome.stdout
    lacking = "fd, kd, swd, precision, recall, density, coverage, fd_teacher, kd_teacher, swd_teacher"
    assert f"not computed: {lacking}: no perc" in outcome.stdout
    assert "MISSED  far  agreement>0.9  (value " in outcome.stdout
    assert "gate missed by near: kd<1  (value -): no perceptual metric computed" in outcome.stderr
    assert sum(line.startswith("agreement ") and "[" in line for line in outcome.stdout.splitlines()) == 1
