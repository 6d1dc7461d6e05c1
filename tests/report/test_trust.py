"""How far a report says it can be trusted: the evidence table and what limits the run's own figures."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import diffusers
import pytest

from diffcompress.records.evaluation import Verdict
from diffcompress.records.metrics import Metric
from diffcompress.records.record import Empty
from diffcompress.report import evidence, figures, reading, trust
from tests.evaluation.records import measured
from tests.report.synthetic_run import write_run

TABLE = json.loads((resources.files("diffcompress.report") / "evidence.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "row", TABLE["rows"], ids=lambda row: f"{row['class_name']}-{row['ratio']}-{row['method'][:12]}"
)
def test_a_row_is_whole_and_its_class_exists(row: dict) -> None:
    assert hasattr(diffusers, row["class_name"])
    assert row["kind"] in ("measured", "published", "trained alone")
    assert 0 < row["ratio"] < 1
    if row["student_params"] is not None:
        assert row["student_params"] / row["teacher_params"] == pytest.approx(row["ratio"], rel=0.01)
    assert row["source"]
    assert row["url"] is None or row["url"].startswith("https://arxiv.org/")
    if row["kind"] == "measured":
        assert row["source"] == "docs/benchmarks.md"


@pytest.mark.parametrize(
    ("class_name", "ratio", "verdict"),
    [
        ("UNet2DModel", 0.05, "inside"),
        ("UNet2DModel", 0.015, "inside"),
        ("UNet2DModel", 0.005, "below"),
        ("UNet2DConditionModel", 0.02, "below"),
        ("DiTTransformer2DModel", 0.3, "inside"),
        ("DiTTransformer2DModel", 0.05, "inside"),
        ("DiTTransformer2DModel", 0.01, "below"),
        ("SD3Transformer2DModel", 0.25, "inside"),
        ("SanaTransformer2DModel", 0.3, "unknown"),  # a smaller one was trained alone
    ],
)
def test_verdicts(class_name: str, ratio: float, verdict: str) -> None:
    found = evidence.lookup(class_name, ratio)
    assert found is not None
    assert found.verdict == verdict
    assert found.nearest and all(row.class_name == class_name for row in found.nearest)


def test_the_nearest_row_comes_first_and_nothing_known_is_none() -> None:
    found = evidence.lookup("UNet2DModel", 0.021)
    assert found is not None and found.nearest[0].student_params == 30840
    assert evidence.lookup("FluxTransformer2DModel", 0.1) is None
    assert evidence.lookup("UNet2DModel", None) is None


def test_measured_rows_repeat_what_the_benchmarks_say() -> None:
    text = (Path(__file__).parents[2] / "docs" / "benchmarks.md").read_text(encoding="utf-8").replace("**", "")
    assert "0.176 [0.157, 0.198]" in text
    assert all(f"| {mean} |" in text for mean in ("0.25", "0.43", "0.53", "0.71", "0.46", "0.48"))
    told = [row["told"] for row in TABLE["rows"] if row["kind"] == "measured"]
    values = [line.removeprefix("fd_demo ")[:4] for line in told]
    assert values == ["0.18", "0.25", "0.43", "0.53", "0.71", "0.46", "0.48"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("params", "agreement", "fd_teacher_dino", "fd_demo_held_out", "fd_demo", "kd_demo"), "fd_demo"),
        (("fd_teacher_dino", "agreement", "fd_teacher_dino_corrected"), "fd_teacher_dino"),
        (("fd_inception", "fid"), "fid"),
        (("paired_distance", "agreement"), "agreement"),
        (("params",), None),
    ],
)
def test_the_figure_on_top(names: tuple[str, ...], expected: str | None) -> None:
    metrics = {name: measured(1.0) for name in names}
    found = figures.headline(metrics)
    assert (found and found[0].name) == expected


def test_names_in_words() -> None:
    assert Metric.named("fd_demo_held_out").label == "Fréchet distance (fd_demo), held-out images"
    assert Metric.named("fd_teacher_dino_corrected").label.startswith(
        "Fréchet distance to the teacher's samples (fd_teacher"
    )
    assert Metric.named("recall_demo").label == "Recall (recall_demo)"
    assert Metric.named("brand_new").label == "Brand new"


def test_remarks_follow_from_the_files(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    collected = reading.collect(run)
    told = " ".join(trust.remarks(collected))
    assert "not finished" in told
    assert "not FID" in told
    assert "one seed (7)" in told
    assert "Train longer, or larger? fd_demo 9.31 becomes 4" in told
    assert "No quality gate is known here" in told
    assert "teacher was not scored" not in told
    gates = [Verdict(expr="params<1", value=1, passed=passed) for passed in (True, False)]
    changes = {"metrics": {}, "protocol": Empty(), "finished": True, "gates": gates}
    told = " ".join(trust.remarks(collected.model_copy(update=changes)))
    assert "No perceptual metric" in told
    assert "1 of 2 quality gates" in told
    assert "not finished" not in told
    counted = {row.metric.name: row for row in trust.counts(collected.metrics)}
    assert counted["fd_demo"].samples == 2048
    assert counted["fd_demo"].width == pytest.approx((9.76 - 8.87) / 9.31)
    assert "params" not in counted
