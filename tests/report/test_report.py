from __future__ import annotations

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import diffusers
import pytest
import torch

from diffcompress.errors import UsageError
from diffcompress.export.weights import export_pipeline
from diffcompress.jobs.report import report
from diffcompress.pipeline.load import LoadedPipeline
from diffcompress.records.report import Shrunk
from diffcompress.records.request import command
from diffcompress.records.run_files import read_json, write_json
from diffcompress.records.run_folder import RunFolder
from diffcompress.report.reading import collect, curves
from tests.report.synthetic_run import TIMINGS, write_run

VOID = {"meta", "img", "input", "br", "link", "hr"}
SELF_CLOSED = {"line", "rect", "circle", "polygon"}


class Page(HTMLParser):
    """Text, references and whether every element is closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.references: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []
        self.count: dict[str, int] = {}
        self.feed(html)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1
        self.references += [
            value or ""
            for name, value in attrs
            if name in ("src", "srcset", "data", "action", "xlink:href") or (name == "href" and tag != "a")
        ]
        self.links += [value or "" for name, value in attrs if name == "href" and tag == "a"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in SELF_CLOSED
        self.count[tag] = self.count.get(tag, 0) + 1

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture
def finished(tmp_path: Path, teacher: LoadedPipeline, student: diffusers.UNet2DModel) -> Path:
    run = write_run(tmp_path / "demo-0.05")
    export_pipeline(student, teacher, run, dtype=torch.float16)
    proof = {
        "passed": True,
        "tolerance": 1e-4,
        "prediction_difference": 3e-7,
        "image_difference": 0.0,
        "sampled_with": "DDPMPipeline.__call__",
    }
    run.proof.write_text(json.dumps(proof | {"sampler_steps": 4, "dtype": "float16", "pipeline": "DDPMPipeline"}))
    return run.path


def test_the_page_is_whole_and_stands_alone(finished: Path) -> None:
    report(str(finished))
    html = (finished / "report.html").read_text()
    page = Page(html)
    assert not page.open
    assert page.references
    assert all(ref.startswith("data:image/png;base64,") for ref in page.references)
    assert all(link.startswith(("#", "https://arxiv.org/")) for link in page.links)
    assert "@import" not in html
    assert "url(" not in html
    assert "http://" not in html
    assert '<div class="controls" hidden' in html  # without scripts: side by side
    assert 'class="sheets" data-mode="side"' in html
    assert page.count["svg"] >= 3 + 3 + 8
    assert page.count["img"] == 3 + 6


def test_every_fact_is_on_the_page(finished: Path) -> None:
    report(str(finished))
    text = Page((finished / "report.html").read_text()).text
    for fact in (
        "demo", "1.27 M", "63.4 k", "4.98 %", "asked for 5 %", "20.1×", "17.1×", "6.56×", "104 M", "9.31 ms", "1.42 ms",
        "9.31 [8.87, 9.76]", "2.04 [1.90, 2.20]", "242 [239, 245]", "1.27 % [0.900 %, 1.80 %]", "0.936 [0.931, 0.941]",
        
        "4 [3.70, 4.30]", "“Corrected” is no model", "2,048 samples", "seed 7",
        "DDIM 25 steps", "lift-place", "cpu, 2 threads", "passed", "DDPMPipeline.__call__",
        "the bank holds <fewer> images than asked", "kd_demo: no reference features", "norm groups went from 8 to 4",
        "2.13.0", "7 min 45 s", "channels_per_group: 2",
        "diffcompress shrink demo --ratio 0.05", "DiffusionPipeline.from_pretrained",
        "licence unknown", "of the teacher's 5.1 MB", "of its teacher's bytes",
        "training step", "timestep (clean to pure noise)", "step 2,000",
    ):  # fmt: skip
        assert fact in text, fact
    assert "This run is not finished" not in text


def test_the_data_holds_the_fields_of_shrink_json(finished: Path) -> None:
    returned = report(str(finished))
    assert returned == json.loads((finished / "report.json").read_text())
    assert list(returned)[: len(Shrunk.model_fields)] == list(Shrunk.model_fields)
    assert returned["teacher"] == {"id": "demo", "params": 1274331}
    assert set(returned["student"]) == {"params", "ratio", "requested_ratio", "config", "prediction_type"}
    assert returned["seconds"] == pytest.approx(sum(TIMINGS.values()))
    assert [(s["name"], s["skipped"], s["rollbacks"]) for s in returned["stages"]] == [("lift", 1, 0), ("place", 2, 1)]
    assert "not_computed" not in returned["metrics"]
    assert returned["finished"]


def test_redrawing_changes_nothing(finished: Path) -> None:
    report(str(finished))
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    report(str(finished))
    assert before == {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}


ABSENT = [
    "plan.json",
    "metrics.json",
    "timings.json",
    "recipe.yaml",
    "environment.json",
    "warnings.json",
    "samples",
    "export-proof.json",
    "pipeline",
    "stage-1-lift",
    "stage-2-place",
]


@pytest.mark.parametrize("name", ABSENT)
def test_anything_may_be_missing(finished: Path, name: str) -> None:
    path = finished / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    result = report(str(finished))
    page = Page((finished / "report.html").read_text())
    assert not page.open
    quiet = ("warnings.json", "stage-1-lift", "stage-2-place")  # no doubts, or one curve fewer
    assert (name in " ".join(result["not_computed"])) == (name not in quiet)
    if name in ("pipeline", "export-proof.json"):
        assert "This run is not finished" in page.text


@pytest.mark.parametrize(
    "name", ["plan.json", "metrics.json", "timings.json", "samples/student.safetensors", "stage-1-lift/metrics.jsonl"]
)
def test_damaged_files_are_told(finished: Path, name: str) -> None:
    (finished / name).write_text('{"step": 3')
    result = report(str(finished))
    assert name in " ".join(result["not_computed"])
    # A line that was cut off, as by a kill, is no row of the curve.
    assert (curves(finished / "stage-1-lift") == []) == (name == "stage-1-lift/metrics.jsonl")


@pytest.mark.parametrize("name", ["timings.json", "export-proof.json"])
@pytest.mark.parametrize("content", [b"[1]", b"\xff\xfe{}"])
def test_other_content_is_damage_too(finished: Path, name: str, content: bytes) -> None:
    (finished / name).write_bytes(content)
    assert f"{name} is damaged" in " ".join(collect(RunFolder(finished)).not_computed)


def test_a_pipeline_that_was_changed_is_not_finished(finished: Path) -> None:
    proof = read_json(finished / "export-proof.json")
    write_json(finished / "export-proof.json", proof | {"files": {"unet/other.safetensors": "0"}})
    found = collect(RunFolder(finished))
    assert not found.finished
    assert any("not what was proved" in line for line in found.not_computed)


def test_a_run_that_has_just_begun(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"teacher": "demo"}')
    result = report(str(tmp_path))
    text = Page((tmp_path / "report.html").read_text()).text
    assert "This run is not finished" in text
    assert "not computed" in text
    assert result["student"]["params"] is None
    assert result["metrics"] == {}
    assert result["seconds"] is None
    assert not any(word in text.lower() for word in ("nan", "undefined", "none%"))


def test_what_is_not_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a run folder"):
        report(str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_nulls_from_a_baseline_without_slopes(finished: Path) -> None:
    metrics = json.loads((finished / "metrics.json").read_text())
    for metric in metrics["metrics"].values():
        if isinstance(metric, dict):
            metric.update(value=None, low=None, high=None, teacher=None, untrained=None, real=None)
    (finished / "metrics.json").write_text(json.dumps(metrics))
    (finished / "stage-1-lift" / "metrics.jsonl").write_text('{"step": 0, "loss": null}\n{"step": 10, "loss": NaN}\n')
    report(str(finished))
    assert "not computed" in Page((finished / "report.html").read_text()).text


def test_metrics_that_lack_the_same_share_a_line(finished: Path) -> None:
    metrics = json.loads((finished / "metrics.json").read_text())
    lacking = [("fd_x", "no images"), ("clip_score", "no CLIP"), ("kd_x", "no images")]
    metrics["metrics"]["not_computed"] = [{"metric": name, "why": why} for name, why in lacking]
    (finished / "metrics.json").write_text(json.dumps(metrics))
    assert report(str(finished))["not_computed"] == ["fd_x, kd_x: no images", "clip_score: no CLIP"]


def test_times_in_different_precisions_say_so(finished: Path) -> None:
    metrics = json.loads((finished / "metrics.json").read_text())
    metrics["metrics"]["latency_ms"]["dtypes"] = {"teacher": "float16", "student": "float32"}
    (finished / "metrics.json").write_text(json.dumps(metrics))
    report(str(finished))
    text = Page((finished / "report.html").read_text()).text
    assert "9.31 ms in float16 → 1.42 ms in float32 a call" in text
    for words in (text, (finished / "pipeline" / "README.md").read_text()):
        assert words.count("9.31 ms in float16") == words.count("1.42 ms in float32") == 1 + (words is text)


def test_the_later_row_of_a_step_counts(tmp_path: Path) -> None:
    lines = ['{"step": 10, "loss": 1.0}', '{"step": 0, "loss": 3.0}', '{"step": 10, "loss": 2.0}', '{"step": 20, "lo']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    assert curves(tmp_path) == [{"step": 0.0, "loss": 3.0}, {"step": 10.0, "loss": 2.0}]


def test_the_command_quotes_what_shells_would_split() -> None:
    asked = {
        "teacher": "my teacher",
        "target": {"ratio": None, "params": 40000},
        "method": "output-kd",
        "recipe": {"seed": 3},
        "data": None,
    }
    expected = "diffcompress shrink 'my teacher' --params 40000 --method output-kd"
    expected += " --recipe 'a run/recipe.yaml' --seed 3 --output 'a run-again'"
    assert command(asked, recipe="a run/recipe.yaml", output="a run-again") == expected
