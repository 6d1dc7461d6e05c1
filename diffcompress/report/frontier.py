"""Size against quality of several students, as a picture of its own that a page can hold too."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from markupsafe import Markup

from diffcompress.evaluation.frontier import unbeaten
from diffcompress.records.evaluation import Evaluation, Metrics
from diffcompress.records.metrics import Metric
from diffcompress.records.units import count, number, short
from diffcompress.report.svg import Axis, dot, label, picture, rule, widened

WIDTH, HEIGHT = 560, 380
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 46, 44
# What makes it a file of its own, and its styles its own.
ALONE = ' xmlns="http://www.w3.org/2000/svg" class="plot"'
# A page that holds the picture names its colours; alone it has these.
STYLE = """
.plot text { font: 11px system-ui, sans-serif; fill: var(--soft, #5b6878); }
.plot .paper { fill: var(--card, #ffffff); } .plot .grid { stroke: var(--line, #e1e6ec); }
.plot .line { fill: none; stroke: var(--student, #2463eb); stroke-width: 1.5; }
.plot .whisker { stroke: var(--student, #2463eb); stroke-width: 5; stroke-linecap: round; opacity: .35; }
.plot .dot { fill: var(--student, #2463eb); stroke: var(--student, #2463eb); stroke-width: 1.5; }
.plot .dot.beaten { fill: var(--card, #ffffff); }
.plot .star { fill: var(--teacher, #0f8a6d); }
.plot .ideal { stroke: var(--teacher, #0f8a6d); stroke-width: 1.5; stroke-dasharray: 5 4; }
"""


def draw(results: Sequence[Evaluation], metric: str) -> Markup:
    """SVG of `metric` over denoiser parameters with 95 % intervals; a line joins the students that none beats.

    The same results give the same picture.
    """
    shared, protocol = results[0].metrics, results[0].protocol
    told = f"{protocol.num_samples:,} samples, {protocol.sampler_steps} steps, 95 % intervals"
    teacher = _teacher(metric, shared)
    across, up = _axes(results, metric, teacher)
    y_label, x_label = f"{metric} ({shared[metric].better} is better)", "denoiser parameters, log scale"
    parts = [
        f"<style>{STYLE}</style>",
        f'<rect class="paper" width="{WIDTH}" height="{HEIGHT}"/>',
        *_grid(across, up),
        label(0, 12, y_label, "axis"),
        label(0, 28, told, "axis"),
        label((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, x_label, "axis", "middle"),
    ]
    if teacher is not None:
        x, y = across(teacher[0]), up(teacher[1])
        parts += [rule("ideal", LEFT, WIDTH - RIGHT, y, y), _star(x, y), _beside(x, y, "teacher")]
    parts += _students(results, metric, across, up)
    return picture(parts, f"{y_label} over {x_label}", HEIGHT, WIDTH, ALONE)


def _students(results: Sequence[Evaluation], metric: str, across: Axis, up: Axis) -> Iterator[str]:
    points = [(one.metrics["params"].known, one.metrics[metric].known) for one in results]
    best = unbeaten(results, metric)
    joined = sorted(point for point, on in zip(points, best, strict=True) if on)
    path = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in joined)
    yield f'<polyline class="line" points="{path}"/>'
    for result, (x, y), on in zip(results, points, best, strict=True):
        one, name = result.metrics[metric], result.student.name
        if one.low is not None and one.high is not None:
            yield rule("whisker", across(x), across(x), up(one.low), up(one.high))
        yield dot("best" if on else "beaten", across(x), up(y), 5, f"{name}: {number(y)} at {count(x)} parameters")
        yield _beside(across(x), up(y), name)


def _axes(results: Sequence[Evaluation], metric: str, teacher: tuple[float, float] | None) -> tuple[Axis, Axis]:
    sizes = [one.metrics["params"].known for one in results]
    measured = [one.metrics[metric] for one in results]
    values = [value for one in measured for value in (one.known, one.low, one.high) if value is not None]
    if teacher is not None:
        sizes, values = [*sizes, teacher[0]], [*values, teacher[1]]
    across = Axis(*widened(min(sizes), max(sizes), True, 0.12), LEFT, WIDTH - RIGHT, True)
    return across, Axis(*widened(min(values), max(values), False, 0.08), HEIGHT - BOTTOM, TOP)


def _grid(across: Axis, up: Axis) -> Iterator[str]:
    for tick in up.ticks():
        yield rule("grid", LEFT, WIDTH - RIGHT, up(tick), up(tick))
        yield label(LEFT - 6, up(tick) + 4, short(tick), "tick", "end")
    for tick in across.ticks():
        yield label(across(tick), HEIGHT - BOTTOM + 16, count(tick), "tick", "middle")


def _beside(x: float, y: float, words: str) -> str:
    """A name on that side of its point where there is room."""
    left = x > 0.7 * WIDTH
    return label(x - 9 if left else x + 9, y - 8, words, "name", "end" if left else "start")


def _star(x: float, y: float) -> str:
    corners = ((9.0 if k % 2 == 0 else 4.0, math.pi * k / 5) for k in range(10))
    points = " ".join(f"{x + r * math.sin(a):.1f},{y - r * math.cos(a):.1f}" for r, a in corners)
    return f'<polygon class="star" points="{points}"><title>teacher</title></polygon>'


def _teacher(metric: str, shared: Metrics) -> tuple[float, float] | None:
    """The teacher's size and its own value; of what compares with the teacher, that of equal models."""
    size, measured = shared["params"].teacher, shared[metric].teacher
    if size is None or size.value is None:
        return None
    own = None if measured is None else measured.value
    return size.value, Metric.named(metric).kind.like_teacher if own is None else own
