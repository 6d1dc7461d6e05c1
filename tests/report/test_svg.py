from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from diffcompress.report import charts, numbers
from diffcompress.report.svg import HEIGHT, WIDTH, Axis, Bar, Series, Span, binned, interval_chart, line_chart
from tests.evaluation.records import measured


def coordinates(svg: str) -> list[tuple[float, float]]:
    points = re.findall(r'<polyline class="line student" points="([^"]*)"', svg)[0].split()
    return [(float(x), float(y)) for x, y in (point.split(",") for point in points)]


def test_points_lie_where_their_values_say() -> None:
    svg = line_chart([Series("a", "student", [0, 5, 10], [0.0, 1.0, 2.0])], x_label="step", y_label="loss")
    (x0, y0), (x1, y1), (x2, y2) = coordinates(str(svg))
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.11)
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.11)
    assert 0 < x0 < x2 < WIDTH
    assert 0 < y2 < y0 < HEIGHT


def test_a_logarithmic_axis_is_even_in_powers_and_drops_what_has_no_logarithm() -> None:
    svg = line_chart(
        [Series("a", "student", [0, 1, 2, 3], [1.0, 0.0, 10.0, 100.0])], x_label="step", y_label="loss", log=True
    )
    (_, a), (_, b), (_, c) = coordinates(str(svg))
    assert a - b == pytest.approx(b - c, abs=0.11)


@pytest.mark.parametrize(
    "values",
    [[1.0], [0.0, 0.0], [1e-12, 1e12], [-3.0, 3.0], [float("nan"), 2.0, float("inf")], [5.0] * 700, [1e-9, 1.0001e-9]],
)
@pytest.mark.parametrize("log", [True, False])
def test_any_values_draw_well_formed_svg(values: list[float], log: bool) -> None:
    series = binned(range(len(values)), values, "a & b", "student")
    svg = line_chart([series], x_label="step", y_label="<loss>", log=log, spans=[Span("lift", 0, 5)], points=True)
    if svg is not None:
        ElementTree.fromstring(svg)
        assert "nan" not in svg
        assert "inf" not in svg
        assert all(-1 <= x <= WIDTH + 1 and -1 <= y <= HEIGHT + 1 for x, y in coordinates(str(svg)))


def test_nothing_to_draw_is_none() -> None:
    assert line_chart([Series("a", "student", [0], [float("nan")])], x_label="x", y_label="y") is None
    assert interval_chart([Bar("a", "student", float("nan"))], x_label="x") is None


def test_binning_keeps_means_and_extremes() -> None:
    series = binned(list(range(1600)), [float(i % 10) for i in range(1600)], "a", "student")
    assert len(series.x) == 160
    assert set(series.y) == {4.5}
    assert set(series.low) == {0.0}
    assert set(series.high) == {9.0}


@pytest.mark.parametrize(
    ("low", "high", "log"),
    [(0.2, 2.4, True), (0.02, 240, True), (0, 1, False), (-0.013, 0.02, False), (1e-9, 1e9, True), (0.55, 0.63, True)],
)
def test_ticks_are_few_and_inside(low: float, high: float, log: bool) -> None:
    ticks = Axis(low, high, 0, 100, log).ticks()
    assert 2 <= len(ticks) <= 7
    assert all(low <= tick <= high for tick in ticks)


def test_intervals_are_drawn_to_scale() -> None:
    svg = str(
        interval_chart([Bar("student", "student", 5.0, 4.0, 6.0), Bar("none", "teacher", 10.0)], x_label="distance")
    )
    ElementTree.fromstring(svg)
    ends = [float(v) for v in re.findall(r'class="whisker student" x1="([\d.]+)" x2="([\d.]+)"', svg)[0]]
    dot = float(re.findall(r'class="dot student" cx="([\d.]+)"', svg)[0])
    assert dot == pytest.approx(sum(ends) / 2, abs=0.11)
    assert svg.count("whisker") == 1


def test_an_interval_down_to_zero_ends_with_the_logarithmic_axis() -> None:
    svg = str(interval_chart([Bar("a", "student", 1.0, -0.1, 2.0), Bar("b", "teacher", 90.0)], x_label="d", log=True))
    (ends,) = re.findall(r'class="whisker student" x1="([\d.]+)" x2="([\d.]+)"', svg)
    (left,) = re.findall(r'class="dot student" cx="([\d.]+)"', svg)
    assert 100 < float(ends[0]) < float(left) < float(ends[1])


@pytest.mark.parametrize(("better", "log"), [("lower", True), ("higher", False)])
def test_only_distances_are_drawn_in_powers_of_ten(better: str, log: bool) -> None:
    """A student of half its teacher's coverage would lie right beside it."""

    metric = measured(0.5, better=better, teacher=0.98, untrained=0.004)
    (figure,) = charts.quality({"coverage_demo": metric})
    assert ("log scale" in figure.svg) is log


def test_code_in_a_sentence() -> None:
    assert numbers.marked("use `plan A` <now>") == "use <code>plan A</code> &lt;now&gt;"
