"""Quality gates: `params<50M`, `size_bytes<80MB`, `fd<1.2*teacher`. A small grammar, read before any work is done.

gate   := metric operator limit
limit  := number | [number "*"] model | model "*" number
number := digits; behind them k, M, G, B (thousands, millions, billions, billions), kB, MB, GB, KiB, MiB, GiB, ms or %
model  := teacher | untrained: the same metric's value of that model
"""

from __future__ import annotations

import difflib
import operator
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path

from diffcompress.errors import UsageError
from diffcompress.records.evaluation import Metrics, Verdict
from diffcompress.records.metrics import PROBE, Metric, full_name
from diffcompress.records.run_files import write_atomically
from diffcompress.records.units import BYTES, COUNTS

OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
}
SUFFIXES = {**BYTES, **COUNTS, "%": 0.01, "ms": 1.0}
MODELS = {
    "teacher": "name it with --teacher, or use a number",
    "untrained": "it is known of the pipeline in a run folder, evaluated alone; name that, or use a number",
}
_TOKEN = re.compile(
    r"\s*(?:(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)(?P<suffix>[A-Za-z%]*)|(?P<word>[A-Za-z_]\w*)|(?P<sign><=|>=|==|!=|=|<|>|\*))"
)
_INSTEAD = {"=": "use ==", "!=": "use == for what must hold, or < and > with a limit"}
_EXAMPLE = "write it like 'params<50M', 'agreement>0.9', 'fd<1.2*teacher' or 'failed_samples<=5%'"


@dataclass(frozen=True)
class Gate:
    """`metric` `sign` `factor`, or times the same metric's value of `model`."""

    expr: str
    metric: str
    sign: str
    factor: float
    model: str | None = None


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    column: int
    value: float = 0.0


def parse(
    expressions: Iterable[str], metrics: Mapping[str, Metric], models: Iterable[str] = tuple(MODELS)
) -> list[Gate]:
    """Gates over `metrics` by name, that may refer to the models in `models`; one expression may come alone.

    Raises UsageError marking the column of what cannot be read, or naming the metric nearest to an unknown one.
    """
    each = [expressions] if isinstance(expressions, str) else expressions
    return [_parse(expr, metrics, models) for expr in each]


def judge(gates: Iterable[Gate], metrics: Metrics, space: str | None = None) -> list[Verdict]:
    """How each gate was judged; one whose numbers were not computed fails and says `why`.

    space: the feature space of the metrics, so that `fd` is `fd_<space>`.
    """
    return [_judge(gate, metrics, space) for gate in gates]


def write_junit(path: Path, results: Mapping[str, Sequence[Verdict]]) -> None:
    """Gate results of each student, by its name, as JUnit XML: one test case per gate and student."""
    cases = [(student, result) for student, judged in results.items() for result in judged]
    failures = sum(not result.passed for _, result in cases)
    suite = ET.Element(
        "testsuite", name="diffcompress evaluate", tests=str(len(cases)), failures=str(failures), errors="0"
    )
    for student, result in cases:
        case = ET.SubElement(suite, "testcase", classname=f"diffcompress.{student}", name=result.expr)
        if not result.passed:
            message = result.why or f"measured {result.value:.6g}"
            ET.SubElement(case, "failure", message=message).text = f"{result.expr}: {message}"
    write_atomically(path, lambda part: ET.ElementTree(suite).write(part, encoding="utf-8", xml_declaration=True))


def _parse(expr: str, metrics: Mapping[str, Metric], models: Iterable[str]) -> Gate:
    tokens = _tokens(expr)

    def take(kinds: tuple[str, ...], wanted: str) -> _Token:
        token = tokens.pop(0)
        if token.kind not in kinds:
            raise _syntax(expr, token.column, f"expected {wanted}")
        return token

    metric = take(("word",), "a metric's name")
    if metric.text not in metrics:
        nearest = difflib.get_close_matches(metric.text.lower(), metrics, n=1, cutoff=0.4)
        meant = f"did you mean '{nearest[0]}'? " if nearest else ""
        raise UsageError(
            f"gate '{expr}' names an unknown metric '{metric.text}', column {metric.column + 1}\n"
            f"  {expr}\n  {' ' * metric.column}^",
            f"{meant}known: {', '.join(name for name, one in metrics.items() if one.is_plain)}, "
            "and distances with the name of a feature space behind them",
        )
    known = f"one of {' '.join(OPERATORS)}"
    sign = take(("sign",), known)
    if sign.text not in OPERATORS:
        raise _syntax(expr, sign.column, f"'{sign.text}' is no comparison, {_INSTEAD.get(sign.text, f'use {known}')}")
    factors = [take(("number", "word"), "a number, teacher or untrained")]
    if tokens[0].text == "*":
        tokens.pop(0)
        other = "word" if factors[0].kind == "number" else "number"
        factors.append(take((other,), "teacher or untrained" if other == "word" else "a number"))
    take(("end",), "the end")
    factor, model = 1.0, None
    for token in factors:
        if token.kind == "number":
            factor = token.value
        elif token.text not in MODELS:
            raise _syntax(expr, token.column, f"expected a number, teacher or untrained, not '{token.text}'")
        elif token.text not in models:
            raise UsageError(
                f"gate '{expr}' compares with the {token.text}, but none is given",
                MODELS[token.text],
            )
        else:
            model = token.text
    most = metrics[metric.text].kind.most
    if model is None and most is not None and factor > most:
        raise UsageError(
            f"gate '{expr}' compares {metric.text}, which is never above 1, with {factor:g}",
            f"for per cent write {factor:g}%",
        )
    return Gate(expr, metric.text, sign.text, factor, model)


def _tokens(expr: str) -> list[_Token]:
    tokens, position = [], 0
    end = len(expr.rstrip())
    while position < end:
        match = _TOKEN.match(expr, position)
        if match is None:
            skipped = len(expr[position:]) - len(expr[position:].lstrip())
            raise _syntax(expr, position + skipped, f"unexpected '{expr[position + skipped]}'")
        kind = str(match.lastgroup if match.lastgroup != "suffix" else "number")
        value = 0.0
        if kind == "number":
            suffix = match["suffix"].lower()
            if suffix not in SUFFIXES:
                known = "k, M, G, B, kB, MB, GB, KiB, MiB, GiB, ms or %"
                raise _syntax(expr, match.start("suffix"), f"unknown unit '{match['suffix']}', expected {known}")
            value = float(match["number"]) * SUFFIXES[suffix]
            if not isfinite(value):
                raise _syntax(expr, match.start("number"), "a number without end, which every value or none passes")
        tokens.append(_Token(kind, match[kind], match.start(kind), value))
        position = match.end()
    return [*tokens, _Token("end", "", end)]


def _syntax(expr: str, column: int, what: str) -> UsageError:
    return UsageError(
        f"cannot read the gate '{expr}', column {column + 1}: {what}\n  {expr}\n  {' ' * column}^", _EXAMPLE
    )


def _judge(gate: Gate, metrics: Metrics, space: str | None) -> Verdict:
    name = full_name(gate.metric, metrics, space)
    measured = metrics.get(name)
    if measured is None or measured.value is None:
        return _missed(gate, None, _why_missing(gate, name, metrics))
    limit = gate.factor
    if gate.model is not None:
        other = measured.of(gate.model)
        if other is None or other.value is None:
            return _missed(gate, measured.value, f"{name} of the {gate.model} was not computed")
        limit *= other.value
    passed = bool(OPERATORS[gate.sign](measured.value, limit))
    return Verdict(expr=gate.expr, value=measured.value, passed=passed)


def _why_missing(gate: Gate, name: str, metrics: Metrics) -> str:
    """The reason of the metric, of the one that it corrects, or of the probe that corrects it."""
    reasons = {one.metric: one.why for one in metrics.not_computed}
    asked = [Metric.named(one) for one in (name, gate.metric)]
    probe = [PROBE] if asked[0].corrected else []
    places = [name, gate.metric, *(replace(one, corrected=False).name for one in asked), *probe]
    return next((reasons[one] for one in places if one in reasons), f"{gate.metric} was not computed")


def _missed(gate: Gate, value: float | None, why: str) -> Verdict:
    return Verdict(expr=gate.expr, value=value, passed=False, why=why)
