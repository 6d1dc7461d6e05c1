"""`evaluate` end to end on tiny real pipelines."""

from __future__ import annotations

import json
import os
import shutil
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file

from diffcompress.cli.app import explain
from diffcompress.errors import ExitStatus, UsageError
from diffcompress.evaluation.features import EXTRACTOR_FILE
from diffcompress.jobs.evaluate import evaluate
from diffcompress.records.metrics import every
from diffcompress.runtime import Progress
from tests.evaluation import models
from tests.telling import Told

COSTS = ("params", "size_bytes", "macs", "latency_ms", "latency_ms_batch16", "memory_bytes")
NEIGHBOURS = ("precision", "recall", "density", "coverage")
STATES = ("agreement_teacher_states", "agreement_own_states")
FAST = {"num_samples": 128, "sampler_steps": 2, "device": "cpu"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("pipelines")
    models.save(root / "teacher", size=28)
    models.save(root / "student" / "pipeline", scale=0.9, size=28)
    models.save(root / "untrained", seed=5, size=28)
    (root / "student" / "student-init").mkdir()
    (root / "gates.xml").symlink_to("linked.xml")
    weights = root / "untrained" / "unet" / "diffusion_pytorch_model.safetensors"
    shutil.copy(weights, root / "student" / "student-init" / "student.safetensors")
    return root


@pytest.fixture(scope="module")
def result(folders):
    return evaluate(
        str(folders / "student" / "pipeline"),
        teacher=str(folders / "teacher"),
        feature_weights=EXTRACTOR_FILE,
        gates=("params<1M", "agreement>0.999", "fd<1.2*teacher", "kd<0.9*untrained"),
        junit=folders / "gates.xml",
        **FAST,
    )


def test_the_result_holds_every_metric_with_its_context(result):
    metrics = result["metrics"]
    assert set(result) == {"student", "teacher", "protocol", "metrics", "probe", "warnings", "gates"}
    distances = {f"{name}_demo" for name in ("fd", "kd", "swd", "fd_teacher", "kd_teacher", "swd_teacher")}
    probed = distances | {"failed_samples", "paired_distance"}
    names = {*COSTS, "agreement", *STATES, "sample_variance", *probed, *(f"{name}_corrected" for name in probed)}
    names |= {f"{name}_demo" for name in NEIGHBOURS} | {"fd_demo_held_out"}
    assert set(metrics) == names | {"not_computed"}
    assert names <= set(every())
    assert metrics["not_computed"] == []
    for name in set(metrics) - {"not_computed"}:
        assert {"value", "low", "high", "unit", "better", "teacher", "untrained", "real"} <= set(metrics[name])
    assert 0.95 < metrics["agreement"]["value"] <= 0.99
    assert len(metrics["agreement"]["levels"]) == 10
    assert metrics["fd_demo"]["untrained"] is not None
    assert 0 < metrics["fd_demo"]["real"]["value"] < 0.1 * metrics["fd_demo"]["value"]
    assert metrics["fd_teacher_demo"]["teacher"] is metrics["swd_teacher_demo"]["teacher"] is None
    assert 0 < metrics["swd_demo"]["real"]["value"] < metrics["swd_demo"]["value"]
    assert metrics["coverage_demo"]["value"] < 0.1 < 0.8 < metrics["coverage_demo"]["real"]["value"]
    assert (metrics["precision_demo"]["neighbours"], metrics["density_demo"]["neighbours"]) == (3, 5)
    assert metrics["precision_demo"]["samples"] == metrics["precision_demo"]["real_samples"] == 128
    assert metrics["paired_distance"]["value"] < metrics["paired_distance"]["untrained"]["value"]
    assert metrics["params"]["value"] == metrics["params"]["teacher"]["value"] == result["student"]["params"]
    assert result["protocol"]["num_samples"] == 128
    json.dumps(result, allow_nan=False)


def test_files_lie_beside_the_student(folders, result):
    folder = folders / "student" / "evaluation"
    assert json.loads((folder / "evaluation.json").read_text()) == result
    for role in ("teacher", "student"):
        assert load_file(folder / "samples" / f"{role}.safetensors")["images"].shape == (64, 1, 28, 28)


@pytest.mark.parametrize("whole", [True, False])
def test_results_lie_beside_what_was_named(tmp_path, monkeypatch, whole):
    """A run of a demo has a name like a demo's; a denoiser that came alone has no pipeline index around it."""
    models.save(tmp_path / "demo-0.05" / "pipeline")
    if not whole:
        (tmp_path / "demo-0.05" / "pipeline" / "model_index.json").unlink()
    monkeypatch.chdir(tmp_path)
    evaluate("demo-0.05/pipeline", **{**FAST, "num_samples": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["demo-0.05"]
    assert {path.name for path in (tmp_path / "demo-0.05").iterdir()} == {"pipeline", "evaluation"}
    assert not (tmp_path / "demo-0.05" / "pipeline" / "evaluation").exists()


def test_gates(folders, result):
    assert [gate["passed"] for gate in result["gates"]][:2] == [True, False]
    untrained = result["metrics"]["kd_demo"]["untrained"]["value"]  # of student-init, which lies beside the pipeline
    assert result["gates"][3]["passed"] == (result["metrics"]["kd_demo"]["value"] < 0.9 * untrained)
    whole = evaluate(str(folders / "untrained"), feature_weights=EXTRACTOR_FILE, output=folders / "alone", **FAST)
    assert whole["metrics"]["kd_demo"]["value"] == untrained
    assert (folders / "gates.xml").is_symlink()
    assert ET.parse(folders / "linked.xml").getroot().get("tests") == "4"


def test_a_second_run_draws_nothing_and_says_the_same(folders, result):
    class Seen(Progress):
        tasks = []

        def update(self, task, done, total, **values):
            self.tasks.append(task)

    again = evaluate(
        str(folders / "student" / "pipeline"),
        teacher=str(folders / "teacher"),
        feature_weights=EXTRACTOR_FILE,
        progress=Seen(),
        **FAST,
    )
    assert Seen.tasks == []
    for name in ("fd_demo", "kd_demo", "failed_samples", "agreement", "paired_distance"):
        assert again["metrics"][name]["value"] == result["metrics"][name]["value"]


def test_without_extractor_and_teacher_it_says_what_is_missing(folders, tmp_path):
    found = evaluate(str(folders / "teacher"), output=tmp_path, gates=("fd<3",), **FAST)
    missing = {item["metric"]: item["why"] for item in found["metrics"]["not_computed"]}
    assert set(missing) == {
        "fd", "kd", "swd", *NEIGHBOURS, "fd_teacher", "kd_teacher", "swd_teacher", "agreement", *STATES,
        "failed_samples", "sample_variance", "paired_distance", "probe",
    }  # fmt: skip
    assert missing["fd"].startswith("no perceptual metric computed: no feature weights; --feature-weights takes")
    assert found["gates"] == [{"expr": "fd<3", "value": None, "passed": False, "why": missing["fd"]}]


def test_the_users_images_are_the_reference(folders, tmp_path):
    stream = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for i in range(130):
        Image.fromarray(stream.integers(0, 255, (32, 30), dtype=np.uint8)).save(tmp_path / "images" / f"{i}.png")
    (tmp_path / "images" / "broken.png").write_text("no image")

    class Warnings(Progress):
        seen = []

        def warn(self, text):
            self.seen.append(text)

    found = evaluate(
        str(folders / "student" / "pipeline"),
        teacher=str(folders / "teacher"),
        data=str(tmp_path / "images"),
        feature_weights=EXTRACTOR_FILE,
        output=tmp_path / "out",
        progress=Warnings(),
        **FAST | {"num_samples": 131},
    )
    assert found["protocol"]["agreement_clean"] == "data"
    assert found["metrics"]["fd_demo"]["reference"] == "data"
    assert "fd_demo_held_out" not in found["metrics"]
    assert any("1 of 131" in text for text in Warnings.seen)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gates": ("agreement>>1",)}, "cannot read the gate"),
        ({"gates": ("speed<1",)}, "unknown metric 'speed'"),
        ({"gates": ("params<untrained",)}, "none is given"),
        ({"num_samples": 0}, "--num-samples 0 is not a positive number"),
        ({"sampler_steps": -1}, "--sampler-steps -1 is not a positive number"),
        ({"teacher": "nowhere"}, "no model at 'nowhere'"),
        ({"data": "nowhere"}, "no image folder at 'nowhere'"),
        ({"feature_weights": "nowhere"}, "no feature extractor at 'nowhere'"),
        ({"device": "gpu"}, "device 'gpu' is not available"),
        ({"junit": "."}, "--junit . is a folder"),
        ({"junit": "/proc/gates/gates.xml"}, "cannot write to /proc/gates"),
    ],
)
def test_bad_input_is_told_before_anything_is_written(folders, tmp_path, options, message):
    values = {"teacher": str(folders / "teacher"), **FAST, **options}
    with pytest.raises(UsageError, match=message):
        evaluate(str(folders / "untrained"), output=tmp_path / "out", **values)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["pipe", "link", "loop"])
def test_gate_results_never_take_the_place_of_what_is_no_file(folders, tmp_path, kind):
    place = tmp_path / kind
    os.mkfifo(tmp_path / "pipe")
    if kind != "pipe":
        place.symlink_to("pipe" if kind == "link" else "loop")
    before = [entry.lstat() for entry in sorted(tmp_path.iterdir())]
    with pytest.raises(UsageError, match=f"--junit {place} (is no regular file|cannot be written: Too many levels)"):
        evaluate(str(folders / "untrained"), teacher=str(folders / "teacher"), output=tmp_path / "out", junit=place)
    assert [(e.st_mode, e.st_ino) for e in before] == [
        (e.lstat().st_mode, e.lstat().st_ino) for e in sorted(tmp_path.iterdir())
    ]


def images(folder, count, broken=0):
    stream = np.random.default_rng(0)
    folder.mkdir()
    for i in range(count):
        Image.fromarray(stream.integers(0, 255, (30, 30), dtype=np.uint8)).save(folder / f"{i}.png")
    for i in range(broken):
        (folder / f"broken{i}.png").write_text("no image")
    return str(folder)


def test_images_that_are_no_reference(folders, tmp_path):
    values = {"teacher": str(folders / "teacher"), "output": tmp_path / "out", **FAST}
    for data, message in (
        (images(tmp_path / "empty", 0), "no readable image in"),
        (images(tmp_path / "broken", 0, 3), r"no readable image in .* \(3 broken\)"),
        (images(tmp_path / "tiny", 9), "9 real images in .* are too few"),
    ):
        with pytest.raises(UsageError, match=message):
            evaluate(str(folders / "untrained"), data=data, **values)
    assert not (tmp_path / "out").exists()


def test_few_images_or_samples_leave_out_what_takes_more(folders, tmp_path):
    found = evaluate(
        str(folders / "untrained"),
        data=images(tmp_path / "few", 12),
        feature_weights=EXTRACTOR_FILE,
        output=tmp_path / "out",
        gates=("fd<9", "kd<1000"),
        **{**FAST, "num_samples": 20},
    )
    missing = {item["metric"]: item["why"] for item in found["metrics"]["not_computed"]}
    few = "20 samples are too few for a Frechet distance of 64 features"
    assert missing["fd_demo"] == f"{few}: --num-samples of 128 or more"
    assert found["metrics"]["coverage_demo"]["samples"] == 12
    assert [gate["passed"] for gate in found["gates"]] == [False, True]
    assert found["gates"][0]["why"] == missing["fd_demo"]


def test_a_student_folder_that_cannot_be_written(folders, tmp_path):
    """As root may write anywhere, a file lies where the folder of results would be."""
    models.save(tmp_path / "run" / "pipeline", size=28)
    (tmp_path / "run" / "evaluation").write_text("in the way")
    with pytest.raises(UsageError, match=r"cannot write to .*evaluation") as caught:
        evaluate(str(tmp_path / "run" / "pipeline"), **FAST)
    assert "--output" in caught.value.hint
    before = sorted((tmp_path / "run").rglob("*"))
    evaluate(str(tmp_path / "run" / "pipeline"), output=tmp_path / "elsewhere", **FAST)
    assert sorted((tmp_path / "run").rglob("*")) == before


def test_a_full_disk_is_resumable(folders, tmp_path, monkeypatch):
    """The error that safetensors raises; the console turns it into exit code 75."""

    def full(*_args, **_values):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    values = {"teacher": str(folders / "teacher"), "output": tmp_path / "out", **{**FAST, "num_samples": 8}}
    with monkeypatch.context() as patch:
        patch.setattr("safetensors.torch.save_file", full)
        with pytest.raises(SafetensorError) as caught:
            evaluate(str(folders / "untrained"), **values)
    assert explain(caught.value)[2] == ExitStatus.STOPPED
    assert not list((tmp_path / "out").rglob("*.part"))
    assert evaluate(str(folders / "untrained"), **values)["metrics"]["agreement"]["value"] < 1


NO_PIPELINES = [("empty", "is empty"), ("file", "no .safetensors file"), ("other", "holds neither")]


@pytest.mark.parametrize(("name", "message"), NO_PIPELINES)
def test_a_student_that_is_no_pipeline(tmp_path, name, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.txt").write_text("x")
    with pytest.raises(UsageError, match=message):
        evaluate(str(tmp_path / name), output=tmp_path / "out", **FAST)
    assert not (tmp_path / "out").exists()


def test_models_of_other_shapes_are_not_compared(folders, tmp_path):
    models.save(tmp_path / "small", size=16)
    with pytest.raises(UsageError, match=r"shape \[1, 28, 28\], the teacher of shape \[1, 16, 16\]"):
        evaluate(str(folders / "untrained"), teacher=str(tmp_path / "small"), output=tmp_path / "out", **FAST)


def test_samples_follow_from_the_interval_asked_for(folders, tmp_path):
    values = {"teacher": str(folders / "teacher"), "feature_weights": EXTRACTOR_FILE, "output": tmp_path, **FAST}
    heard = Told()
    asked = values | {"num_samples": 192, "interval": 0.2, "progress": heard}
    students = [str(folders / name) for name in ("student/pipeline", "untrained")]
    results = evaluate(students, **asked)
    assert {one["protocol"]["num_samples"] for one in results} == {192}
    for one in results:
        found = one["metrics"]["fd_demo"]
        assert (found["high"] - found["low"]) / found["value"] < 2 * 0.2
    assert [note.partition(":")[0] for note in heard.notes if "interval" in note] == ["192 samples"]
    for changed, message in (
        ({"num_samples": 100}, "--interval is of a distance: 100 samples are too few"),
        ({"feature_weights": None}, "--interval is of a distance: there are no feature weights"),
        ({"interval": 5.0}, "--interval 5 is not between 0 and 1"),
    ):
        with pytest.raises(UsageError, match=message):
            evaluate(students[0], **asked | changed)
