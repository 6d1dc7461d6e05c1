"""The gate grammar: what it reads, what it refuses, and how it judges."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

import pytest

from diffcompress.errors import UsageError
from diffcompress.evaluation.gates import judge, parse, write_junit
from diffcompress.records.metrics import every, full_name
from tests.evaluation.records import measured, metrics

METRICS = every()


FOUND = metrics(
    {"kd": "no extractor"},
    params=measured(40e6, teacher=800e6),
    agreement=measured(0.93),
    fd_demo=measured(2.3, teacher=2.0, untrained=40.0),
    fd_demo_held_out=measured(99.0, teacher=99.0),
    failed_samples=measured(0.05, teacher=0.001),
    size_bytes=measured(80e6 - 1),
    latency_ms=measured(2.5),
    fd_demo_corrected=measured(1.5),
    coverage_demo=measured(0.92, teacher=1.0),
)


@pytest.mark.parametrize(
    ("expr", "passed"),
    [
        ("params<50M", True),
        ("params < 39.9m", False),
        ("params<=40000k", True),
        ("params<0.04G", False),
        ("params<0.041B", True),
        ("params==4e7", True),
        ("params<0.1*teacher", True),
        ("agreement>0.9", True),
        ("agreement >= .94", False),
        ("fd<1.2*teacher", True),
        ("fd<teacher*1.1", False),
        ("fd < teacher", False),
        ("fd_demo<0.1*untrained", True),
        ("failed_samples<=5%", True),
        ("failed_samples<5%", False),
        ("size_bytes<80MB", True),
        ("size_bytes<79MB", False),
        ("size_bytes<76.4MiB", True),
        ("latency_ms<3ms", True),
        ("fd_corrected<1", False),
        ("coverage>0.9*teacher", True),
    ],
)
def test_judges(expr, passed):
    (result,) = judge(parse([expr], METRICS), FOUND, "demo")
    assert result.expr == expr
    assert result.passed is passed
    assert result.value is not None
    assert set(result.to_json()) == {"expr", "value", "passed"}


@pytest.mark.parametrize("expr", ["params=10", "params = 10", "params!=10"])
def test_says_which_comparison_is_meant(expr):
    with pytest.raises(UsageError, match=r"column \d+: '!?=' is no comparison, use =="):
        parse([expr], METRICS)


@pytest.mark.parametrize(
    ("expr", "column"),
    [
        ("", 1),
        ("params", 7),
        ("params<", 8),
        ("params!5", 7),
        ("params*5", 7),
        ("params<<5", 8),
        ("params<50Q", 10),
        ("params<5 6", 10),
        ("params<teach", 8),
        ("params<2*3", 10),
        ("params<teacher*teacher", 16),
        ("5<params", 1),
        ("params<5;print(1)", 9),
        ("params<__import__('os')", 18),
        ("params<nan", 8),
        ("params< 1e999", 9),
    ],
)
def test_marks_the_column_of_a_syntax_error(expr, column):
    with pytest.raises(UsageError) as caught:
        parse([expr], METRICS)
    assert f"column {column}:" in caught.value.message
    assert caught.value.message.splitlines()[-1] == "  " + " " * (column - 1) + "^"


@pytest.mark.parametrize("expr", ["failed_samples<5", "agreement>90", "recall_demo >= 1.5", "coverage<80"])
def test_a_share_is_not_compared_with_more_than_one(expr):
    with pytest.raises(UsageError, match="never above 1") as caught:
        parse([expr], METRICS)
    assert caught.value.hint.startswith("for per cent write") and caught.value.hint.endswith("%")
    parse(["failed_samples<=100%", "failed_samples<2*teacher", "density_demo<3"], METRICS)


def test_one_expression_may_come_alone():
    assert parse("params<50M", METRICS) == parse(["params<50M"], METRICS)


def test_an_unknown_metric_gets_the_nearest_name():
    with pytest.raises(UsageError) as caught:
        parse(["agrement>0.9"], METRICS)
    assert "did you mean 'agreement'" in caught.value.hint
    assert caught.value.message.splitlines()[-2:] == ["  agrement>0.9", "  ^"]
    assert "fd_corrected" not in caught.value.hint and "fd_demo" not in caught.value.hint
    with pytest.raises(UsageError) as caught:
        parse(["FD<1"], METRICS)
    assert "did you mean 'fd'?" in caught.value.hint


def test_short_names_mean_the_space_that_is_used():
    computed: dict[str, Any] = {"fd_demo": {}, "params": {}}
    assert full_name("fd", computed, "demo") == "fd_demo"
    assert full_name("recall", computed, "demo") == "recall_demo"
    assert full_name("fd_teacher_corrected", computed, "demo") == "fd_teacher_demo_corrected"
    assert full_name("params", computed, "demo") == "params"
    assert full_name("fd", {"fd": {}}, None) == "fd"
    assert full_name("fd", {"fid": {}}, "inception") == "fid"
    assert full_name("fd_inception", {"fid": {}}, "inception") == "fid"
    assert full_name("kd_mine", {"kd_mine": {}}, "mine") == "kd_mine"
    assert {"fd_mine", "coverage_mine"} <= set(every("mine"))


def test_every_student_has_its_test_cases(tmp_path):
    gates = parse(["params<50M", "fd<1"], METRICS)
    write_junit(tmp_path / "gates.xml", {name: judge(gates, FOUND, "demo") for name in ("a", "b")})
    suite = ET.parse(tmp_path / "gates.xml").getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("4", "2")
    assert [case.get("classname") for case in suite] == ["diffcompress.a"] * 2 + ["diffcompress.b"] * 2


def test_a_model_that_is_not_there_is_refused_before_any_work():
    with pytest.raises(UsageError, match="compares with the teacher, but none is given"):
        parse(["fd<teacher"], METRICS, models=())


def test_what_was_not_computed_fails_with_the_reason():
    results = judge(parse(["kd<1", "macs<5", "agreement>teacher"], METRICS), FOUND)
    assert [result.passed for result in results] == [False, False, False]
    assert [result.why for result in results] == [
        "no extractor",
        "macs was not computed",
        "agreement of the teacher was not computed",
    ]


def test_a_corrected_metric_fails_for_the_reason_of_the_metric_or_of_the_probe():
    reasons = {"probe": "no teacher", "fd_demo": "too few samples"}
    found = metrics(reasons, kd_demo=measured(1.0), paired_distance=measured(1.0))
    results = judge(parse(["fd_corrected<1", "kd_corrected<1", "macs<1"], METRICS), found, "demo")
    assert [one.why for one in results] == ["too few samples", "no teacher", "macs was not computed"]


def test_a_value_that_is_not_a_number_fails():
    (result,) = judge(parse(["agreement<=1"], METRICS), metrics(agreement=measured(float("nan"))))
    assert result.passed is False


def test_junit(tmp_path):
    results = judge(parse(["params<50M", "fd<1", "kd<1"], METRICS), FOUND, "demo")
    write_junit(tmp_path / "gates.xml", {"student": results})
    suite = ET.parse(tmp_path / "gates.xml").getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("3", "2")
    assert [case.get("name") for case in suite] == ["params<50M", "fd<1", "kd<1"]
    assert [failure.get("message") for failure in suite.iter("failure")] == ["measured 2.3", "no extractor"]
