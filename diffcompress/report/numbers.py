"""Numbers as people read them. None and non-finite values are "not computed"."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from typing import Any

from markupsafe import Markup, escape

from diffcompress.records.evaluation import Measured, Missing, Value
from diffcompress.records.metrics import Kind
from diffcompress.records.protocol import Protocol
from diffcompress.records.record import Empty

NOTHING = "not computed"
_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_BETTER = {"lower": "lower is better", "higher": "higher is better"}


def better(direction: str | None) -> str:
    return _BETTER.get(direction or "", "")


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def number(value: Any, digits: int = 3) -> str:
    """Three significant digits, powers of ten only where nothing shorter is readable."""
    if not is_number(value):
        return NOTHING
    size = abs(value)
    if value == 0 or (float(value).is_integer() and size < 1e6):
        return f"{value:,.0f}"
    if size >= 1e6 or size < 1e-4:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa} × 10{_superscript(int(exponent))}"
    decimals = max(0, digits - 1 - math.floor(math.log10(size)))
    return f"{value:,.{decimals}f}"


def short(value: float) -> str:
    """For round numbers such as axis ticks and tolerances: no trailing zeros."""
    return number(value) if value and not 1e-4 <= abs(value) < 1e6 else f"{value:,.6g}"


def count(value: Any, unit: str = "") -> str:
    """1,274,331 -> "1.27 M"; below ten thousand in full."""
    if not is_number(value):
        return NOTHING
    for scale, prefix in _PREFIXES:
        if abs(value) >= max(scale, 1e4):
            return f"{value / scale:.3g} {prefix}{unit}"
    return f"{value:,.0f} {unit}".strip()


def size(value: Any) -> str:
    return count(value, "B")


def percent(value: Any, digits: int = 3) -> str:
    return NOTHING if not is_number(value) else f"{number(100 * value, digits)} %"


def times(large: Any, small: Any) -> str | None:
    """How many times `large` is `small`, None where that cannot be said."""
    return f"{large / small:.3g}" if is_number(large) and is_number(small) and small > 0 else None


def duration(seconds: Any) -> str:
    if not is_number(seconds):
        return NOTHING
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def quantity(value: Any, kind: Kind) -> str:
    """A metric's value, as its kind is told."""
    return _TOLD[kind.told](value) if is_number(value) else NOTHING


def in_dtype(measured: Measured, role: str) -> str:
    """ " in float16" behind the figure of `role`, where student and teacher computed in different precisions."""
    dtype = measured.dtypes.get(role)
    return f" in {dtype}" if dtype else ""


def interval(estimate: Value | Measured | None, kind: Kind) -> str:
    """ "[low, high]" of a value, empty where there is none."""
    if estimate is None or not is_number(estimate.low) or not is_number(estimate.high):
        return ""
    return f"[{quantity(estimate.low, kind)}, {quantity(estimate.high, kind)}]"


def protocol(record: Protocol | Empty, samples: int | None = None) -> str:
    """One line that belongs beside every quality figure; samples: of the figure, where it has fewer than the rest."""
    if not record:
        return "protocol not recorded"
    return ", ".join([f"{samples or record.num_samples:,} samples", drawn(record), "95 % intervals"])


def drawn(record: Protocol) -> str:
    """How samples were drawn."""
    sampler = "DDIM" if record.sampler == "ddim" else record.sampler
    guidance = f", guidance {record.guidance:g}" if record.guidance != 1.0 else ""
    return f"seed {record.seed}, {sampler} {record.sampler_steps} steps{guidance}"


def marked(text: str) -> Markup:
    """A sentence of ours as HTML: what stands between backticks is code."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def lacking(skipped: Iterable[Missing]) -> list[str]:
    """What was not computed and why, one line for all metrics that lack the same."""
    found: dict[str, list[str]] = {}
    for item in skipped:
        found.setdefault(item.why, []).append(item.metric)
    return [f"{', '.join(names)}: {why}" for why, names in found.items()]


def _superscript(exponent: int) -> str:
    return str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


_TOLD: dict[str, Callable[[Any], str]] = {
    "number": number,
    "count": count,
    "bytes": size,
    "share": percent,
    "ms": lambda value: f"{number(value)} ms",
}
