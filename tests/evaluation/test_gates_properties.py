"""Any gate that the grammar allows is read as what it says; anything else is refused in one place of the line."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from diffcompress.errors import UsageError
from diffcompress.evaluation.gates import MODELS, OPERATORS, SUFFIXES, Gate, judge, parse
from diffcompress.records.metrics import Metric
from tests.evaluation.records import measured, metrics

METRICS = {name: Metric.named(name) for name in ("params", "fd", "agreement", "failed_samples", "latency_ms")}
SPACE = st.text(" \t", max_size=2)
NUMBERS = st.floats(0, 1e6).map(lambda value: f"{value:.6g}")


@st.composite
def gates(draw: st.DrawFn) -> tuple[str, Gate]:
    """An expression and what it means."""
    metric, sign = draw(st.sampled_from(list(METRICS))), draw(st.sampled_from(sorted(OPERATORS)))
    number, suffix = draw(NUMBERS), draw(st.sampled_from(sorted(SUFFIXES)))
    if "e" in number:
        suffix = ""
    suffix = draw(st.sampled_from([suffix, suffix.upper()]))
    factor, model = float(number) * SUFFIXES[suffix.lower()], draw(st.sampled_from([None, *MODELS]))
    limit = [f"{number}{suffix}"]
    if model is not None:
        limit = draw(st.permutations([*limit, model]))
        if draw(st.booleans()):
            limit, factor = [model], 1.0
    elif metric in ("agreement", "failed_samples"):  # shares, which are not compared with more than 1
        limit, factor = ["0.5"], 0.5
    tokens = [metric, sign, *limit] if len(limit) == 1 else [metric, sign, limit[0], "*", limit[1]]
    expr = draw(SPACE) + "".join(token + draw(SPACE) for token in tokens)
    return expr, Gate(expr, metric, sign, factor, model)


@given(gates(), st.floats(-1e9, 1e9), st.floats(-1e9, 1e9))
def test_a_gate_means_what_it_says(drawn, value, other):
    expr, expected = drawn
    (found,) = parse([expr], METRICS)
    assert (found.expr, found.metric, found.sign, found.model) == (expr, expected.metric, expected.sign, expected.model)
    assert math.isclose(found.factor, expected.factor, rel_tol=1e-12)
    limit = found.factor * {None: 1.0, "teacher": other, "untrained": other / 2}[found.model]
    measured_one = {expected.metric: measured(value, teacher=other, untrained=other / 2)}
    (result,) = judge([found], metrics(None, **measured_one))
    assert result.to_json() == {"expr": expr, "value": value, "passed": OPERATORS[expected.sign](value, limit)}


@given(st.text(st.sampled_from("abfd<>=!*%. 0123456789eEkM+-_\n\té"), max_size=20) | st.text(max_size=10))
def test_whatever_is_written_is_read_or_refused(text):
    try:
        (found,) = parse([text], METRICS)
    except UsageError as caught:
        error = caught
    else:
        assert found.metric in METRICS and found.sign in OPERATORS
        return
    assert error.hint
    if "^" in error.message and text.isprintable():
        *_, shown, marker = error.message.split("\n")
        assert shown == f"  {text}" and set(marker.strip()) == {"^"}
        assert len(marker) - 3 <= len(text)
