"""Charts as inline SVG: no script, no font, no file. Colours come from the page's CSS and follow light and dark.

docs/decisions/0018 says why no library draws them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from diffcompress.records.units import is_number, number, short

WIDTH, HEIGHT = 360, 232
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 40, 40
MOST_POINTS = 160


@dataclass(frozen=True)
class Series:
    """A line. role: CSS class that colours it (student, teacher, untrained); low, high: a band around it."""

    label: str
    role: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@dataclass(frozen=True)
class Span:
    """A named stretch of the horizontal axis, such as a training stage."""

    label: str
    low: float
    high: float


@dataclass(frozen=True)
class Bar:
    """One row of an interval chart."""

    label: str
    role: str
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Axis:
    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        bend = math.log10 if self.log else float
        share = (bend(value) - bend(self.low)) / (bend(self.high) - bend(self.low))
        return self.start + share * (self.end - self.start)

    def ticks(self, count: int = 4) -> list[float]:
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            inside = [10.0**e for e in decades if self.low <= 10.0**e <= self.high]
            if len(inside) < 3:
                inside = [f * 10.0**e for e in decades for f in (1, 2, 5) if self.low <= f * 10.0**e <= self.high]
            if len(inside) >= 2:
                return inside[:: math.ceil(len(inside) / (count + 2))]
        rough = (self.high - self.low) / count
        power = 10 ** math.floor(math.log10(rough))
        step = next(f * power for f in (1, 2, 2.5, 5, 10) if f * power >= rough * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        return [round(k * step, 12) for k in range(first, math.floor(self.high / step + 1e-9) + 1)]


def binned(x: Sequence[float], y: Sequence[float], label: str, role: str) -> Series:
    """At most MOST_POINTS points: the mean of each stretch, with its smallest and largest value as a band."""
    size = max(1, math.ceil(len(x) / MOST_POINTS))
    chunks = [(x[i : i + size], y[i : i + size]) for i in range(0, len(x), size)]
    middle, mean = [sum(a) / len(a) for a, _ in chunks], [sum(b) / len(b) for _, b in chunks]
    if size == 1:
        return Series(label, role, middle, mean)
    return Series(label, role, middle, mean, [min(b) for _, b in chunks], [max(b) for _, b in chunks])


def line_chart(
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    log: bool = False,
    reference: float | None = None,
    spans: Sequence[Span] = (),
    points: bool = False,
) -> Markup | None:
    """Lines over a common horizontal axis; `reference`: the ideal value. None when there is nothing to draw."""
    kept = [_drawable(one, log) for one in series]
    kept = [one for one in kept if one.x]
    if not kept:
        return None
    xs = [v for one in kept for v in one.x] + [v for span in spans for v in (span.low, span.high)]
    ys = [v for one in kept for v in (*one.y, *one.low, *one.high)] + ([] if reference is None else [reference])
    across = Axis(*widened(min(xs), max(xs), False, 0.0), LEFT, WIDTH - RIGHT)
    up = Axis(*widened(min(ys), max(ys), log, 0.06), HEIGHT - BOTTOM, TOP if spans else TOP - 16, log)
    parts = [*_spans(spans, across), *_grid(up), *_x_ticks(across)]
    if reference is not None:
        parts.append(rule("ideal", LEFT, WIDTH - RIGHT, up(reference), up(reference)))
    for one in kept:
        parts += _line(one, across, up, points)
    parts.append(label((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, x_label, "axis", "middle"))
    parts.append(label(0, 12, y_label, "axis"))
    return picture(parts, f"{y_label} over {x_label}", HEIGHT)


def interval_chart(bars: Sequence[Bar], *, x_label: str, log: bool = False) -> Markup | None:
    """A dot with its interval for each row, on one axis that begins at zero unless logarithmic."""
    bars = [bar for bar in bars if is_number(bar.value) and (not log or bar.value > 0)]
    if not bars:
        return None
    values = [v for bar in bars for v in (bar.value, bar.low, bar.high) if v is not None]
    ends = [v for v in values if not log or v > 0]
    low, high = (min(ends), max(ends)) if log else (min(0.0, *ends), max(0.0, *ends))
    left, row, height = 104, 30, 30 * len(bars) + 46
    across = Axis(*widened(low, high, log, 0.05), left, WIDTH - 58, log)
    parts = [
        rule("grid", across(t), across(t), 8, height - 38) + label(across(t), height - 24, short(t), "tick", "middle")
        for t in across.ticks(3)
    ]
    for position, bar in enumerate(bars):
        y = 8 + row * (position + 0.5)
        parts.append(label(left - 12, y + 4, bar.label, "row", "end"))
        if bar.low is not None and bar.high is not None:
            start = max(bar.low, across.low)  # zero and below lie beyond the end of a logarithmic axis
            parts.append(rule(f"whisker {bar.role}", across(start), across(bar.high), y, y))
        parts.append(dot(bar.role, across(bar.value), y, 5, f"{bar.label}: {number(bar.value)}"))
        parts.append(label(WIDTH - 4, y + 4, number(bar.value), "value", "end"))
    parts.append(label((left + WIDTH - 58) / 2, height - 6, x_label, "axis", "middle"))
    return picture(parts, x_label, height)


def _drawable(one: Series, log: bool) -> Series:
    keep = [i for i, y in enumerate(one.y) if is_number(y) and (not log or y > 0)]
    banded = bool(one.low) and all(is_number(v) and (not log or v > 0) for v in one.low)
    pick: Callable[[Sequence[float]], list[float]] = lambda values: [values[i] for i in keep]  # noqa: E731
    return Series(
        one.label, one.role, pick(one.x), pick(one.y), pick(one.low) if banded else (), pick(one.high) if banded else ()
    )


def widened(low: float, high: float, log: bool, share: float) -> tuple[float, float]:
    """The range with a margin, and never empty."""
    if log:
        factor = max((high / low) ** share, 1.02 if high > low else 2.0)
        return low / factor, high * factor
    margin = (high - low) * share if high > low else max(abs(high) * 0.1, 0.1)
    return low - margin, high + margin


def _line(one: Series, across: Axis, up: Axis, points: bool) -> Iterable[str]:
    path = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in zip(one.x, one.y, strict=True))
    if one.low:
        edge = [f"{across(x):.1f},{up(y):.1f}" for x, y in zip(one.x, one.high, strict=True)]
        edge += [f"{across(x):.1f},{up(y):.1f}" for x, y in zip(reversed(one.x), reversed(one.low), strict=True)]
        yield f'<polygon class="band {one.role}" points="{" ".join(edge)}"/>'
    yield f'<polyline class="line {one.role}" points="{path}"><title>{escape(one.label)}</title></polyline>'
    if points or len(one.x) == 1:
        for x, y in zip(one.x, one.y, strict=True):
            yield dot(one.role, across(x), up(y), 3.5, f"{one.label}: {number(y)} at {number(x)}")


def _spans(spans: Sequence[Span], across: Axis) -> Iterable[str]:
    for position, span in enumerate(spans):
        left, right = across(span.low), across(span.high)
        shade = "span odd" if position % 2 else "span"
        top = TOP - 16  # room for the name, above every curve
        box = f'x="{left:.1f}" y="{top}" width="{max(0.0, right - left):.1f}" height="{HEIGHT - top - BOTTOM}"'
        yield f'<rect class="{shade}" {box}/>'
        if right - left > 6 * len(span.label):
            yield label(left + 5, TOP - 4, span.label, "stage")


def _grid(up: Axis) -> Iterable[str]:
    for tick in up.ticks():
        yield rule("grid", LEFT, WIDTH - RIGHT, up(tick), up(tick))
        yield label(LEFT - 6, up(tick) + 4, short(tick), "tick", "end")


def _x_ticks(across: Axis) -> Iterable[str]:
    for tick in across.ticks():
        yield label(across(tick), HEIGHT - BOTTOM + 16, short(tick), "tick", "middle")


def rule(role: str, x1: float, x2: float, y1: float, y2: float) -> str:
    """A straight line."""
    return f'<line class="{role}" x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}"/>'


def dot(role: str, x: float, y: float, radius: float, words: str) -> str:
    """A point that tells `words` under the mouse."""
    return f'<circle class="dot {role}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}"><title>{escape(words)}</title></circle>'


def label(x: float, y: float, words: str, role: str, anchor: str = "start") -> str:
    """One line of text that stands on (x, y)."""
    return f'<text class="{role}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def picture(parts: Iterable[str], title: str, height: int, width: int = WIDTH, attributes: str = "") -> Markup:
    """`parts` as one SVG."""
    size = f'viewBox="0 0 {width} {height}"{attributes}'
    body = "".join(parts)
    return Markup(f'<svg {size} role="img" aria-label="{escape(title)}">{body}</svg>')
