"""Numbers as people write and read them, on the command line and in reports. None and non-finite: "not computed"."""

from __future__ import annotations

import math
from typing import Any

NOTHING = "not computed"
PREFIXES = {"k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15}
# As people type them, in small letters; a billion of something is a b too.
COUNTS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9}
BYTES = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def is_number(value: Any) -> bool:
    """Whether `value` is a finite number, and no truth value."""
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
    for prefix, scale in reversed(PREFIXES.items()):
        if abs(value) >= max(scale, 1e4):
            return f"{value / scale:.3g} {prefix}{unit}"
    return f"{value:,.0f} {unit}".strip()


def size(value: Any) -> str:
    """2,360,000 -> "2.36 MB"."""
    return count(value, "B")


def percent(value: Any, digits: int = 3) -> str:
    """0.0504 -> "5.04 %"."""
    return NOTHING if not is_number(value) else f"{number(100 * value, digits)} %"


def times(large: Any, small: Any) -> str | None:
    """How many times `large` is `small`, None where that cannot be said."""
    return f"{large / small:.3g}" if is_number(large) and is_number(small) and small > 0 else None


def duration(seconds: Any) -> str:
    """4.24 -> "4.24 s", 63 -> "1 min 3 s", 3723 -> "1 h 2 min"."""
    if not is_number(seconds):
        return NOTHING
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _superscript(exponent: int) -> str:
    return str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
