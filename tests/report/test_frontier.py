import re
from xml.etree import ElementTree

import pytest

from diffcompress.records.evaluation import Evaluation
from diffcompress.report.frontier import BOTTOM, HEIGHT, LEFT, TOP, WIDTH, draw
from tests.evaluation.records import evaluation, measured


def student(name: str, params: float, value: float) -> Evaluation:
    shown = measured(value, 0.9 * value, 1.2 * value, teacher=1.0)
    found = evaluation(params=measured(params, teacher=100_000), fd_demo=shown)
    return found.model_copy(update={"student": found.student.model_copy(update={"name": name})})


def test_the_line_joins_those_that_none_beats_at_the_places_of_their_values() -> None:
    results = [student("large", 10_000, 4.0), student("beaten", 10_000, 8.0), student("small", 1_000, 7.0)]
    svg = str(draw(results, "fd_demo"))
    ElementTree.fromstring(svg)
    path = re.findall(r'polyline [^>]*points="([^"]*)"', svg)[0].split()
    dots = re.findall(r'dot \w+" cx="([\d.]+)" cy="([\d.]+)"', svg)
    assert path == [",".join(dots[2]), ",".join(dots[0])]
    assert svg.count('class="dot beaten"') == 1 and "beaten: 8 at 10 k parameters" in svg
    (large, beaten, small) = [tuple(map(float, one)) for one in dots]
    x, top = map(float, re.findall(r'star" points="([\d.]+),([\d.]+)', svg)[0])
    # Powers of ten are as far apart as each other, and more distance lies higher.
    assert x - large[0] == pytest.approx(large[0] - small[0], abs=0.2)
    assert beaten[1] < small[1] < large[1] < top + 9
    assert all(LEFT < x < WIDTH and TOP < y < HEIGHT - BOTTOM for x, y in (large, beaten, small))


def test_a_student_alone_without_a_teacher_is_drawn_too() -> None:
    svg = str(draw([evaluation(params=measured(500), agreement=measured(0.5, better="higher"))], "agreement"))
    ElementTree.fromstring(svg)
    assert 'class="star"' not in svg and "higher is better" in svg
