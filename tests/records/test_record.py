"""Files of earlier and later versions, and files that were cut."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from diffcompress.errors import DamagedError
from diffcompress.records.evaluation import Evaluation, Measured, Metrics
from diffcompress.records.metrics import Estimate, Metric
from diffcompress.records.protocol import Protocol
from diffcompress.records.record import Empty, plain
from diffcompress.records.run_files import read_record, write_json

PROTOCOL = {"feature_space": "demo", "sampler": "ddim", "sampler_steps": 2, "num_samples": 4, "seed": 0}
METRIC = {"value": 3, "low": None, "high": None, "unit": "", "better": "lower", "teacher": None, "untrained": None,
          "real": None}  # fmt: skip


def evaluation(**changes: Any) -> dict[str, Any]:
    metrics = {"fd_demo": METRIC | {"samples": 4, "colour": "blue"}, "not_computed": []}
    return {"student": {"id": "s"}, "teacher": None, "protocol": PROTOCOL, "metrics": metrics, **changes}


def test_reading_and_writing_changes_nothing() -> None:
    """Neither what an earlier version left out nor what a later one added; a whole number stays one."""
    told = evaluation(later={"a": 1})
    assert Evaluation.model_validate(told).to_json() == told
    assert isinstance(Evaluation.model_validate(told).metrics["fd_demo"].value, int)


@pytest.mark.parametrize(
    "changes",
    [{"protocol": {}}, {"student": {}}, {"metrics": {"fd_demo": {}}}, {"metrics": {"fd_demo": 0.5}}, {"gates": "none"}],
)
def test_what_is_cut_is_damaged(tmp_path, changes: dict[str, Any]) -> None:
    write_json(tmp_path / "evaluation.json", evaluation(**changes))
    with pytest.raises(DamagedError, match=r"evaluation\.json is damaged: \w+"):
        read_record(tmp_path / "evaluation.json", Evaluation)


def test_nothing_known_is_false_and_holds_nothing() -> None:
    assert not Empty()
    assert Empty().to_json() == {}
    with pytest.raises(ValidationError):
        Empty.model_validate({"seed": 1})


def test_a_whole_record_writes_its_defaults_too() -> None:
    told = Protocol.whole(**PROTOCOL).to_json()
    assert list(told) == list(Protocol.model_fields)
    assert (told["guidance"], told["revision"], told["extractor"]) == (1.0, 1, None)
    assert "guidance" not in Protocol(**PROTOCOL).to_json()


def test_records_are_plain_in_lists_too() -> None:
    assert plain([Measured(value=1), {"a": 1}]) == [{"value": 1}, {"a": 1}]


def test_values_that_are_not_finite_are_not_kept() -> None:
    metrics, metric = Metrics(not_computed=[]), Metric.named("fd_demo")
    metrics.add(metric, {"student": Estimate(1.0, 0.5, 2.0), "teacher": float("nan"), "corrected": 0.7})
    assert list(metrics.measured) == ["fd_demo", "fd_demo_corrected"]
    assert metrics["fd_demo"].teacher is None
    assert metrics["fd_demo"].better == "lower"
    assert metrics["fd_demo_corrected"].to_json()["value"] == 0.7
    metrics.add(Metric.named("kd_demo"), {"student": float("inf"), "teacher": 1.0})
    assert "kd_demo" not in metrics
    assert [one.metric for one in metrics.not_computed] == ["kd_demo"]
