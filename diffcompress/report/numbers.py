"""Numbers as people read them. None and non-finite values are "not computed"."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from markupsafe import Markup, escape

NOTHING = "not computed"
_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_LABELS = {
    "latency_ms": "Time of one denoiser call, batch of 1",
    "latency_ms_batch16": "Time of one denoiser call, batch of 16",
    "agreement": "Agreement with the teacher",
    "params": "Denoiser parameters",
    "size_bytes": "Denoiser weights as stored",
    "macs": "Multiply-accumulates per denoiser call",
    "memory_bytes": "Memory of one denoiser call",
    "paired_distance": "Distance to the teacher's image",
    "failed_samples": "Failed samples",
    "clip_score": "CLIP score",
    "fid": "FID",
}
# Measured in some feature space, whose name follows.
_IN_A_SPACE = {
    "fd_teacher": "Fréchet distance to the teacher's samples",
    "kd_teacher": "Kernel distance to the teacher's samples",
    "fd": "Fréchet distance",
    "kd": "Kernel distance",
    "precision": "Precision",
    "recall": "Recall",
    "density": "Density",
    "coverage": "Coverage",
}
_ENDINGS = {"_held_out": ", held-out images", "_corrected": ", student corrected by the probe"}
_COST_UNITS = ("parameters", "multiply-accumulates", "ms per call", "bytes")
_BETTER = {"lower": "lower is better", "higher": "higher is better"}


def label(name: str) -> str:
    """A metric's name in words; that of its feature space stays beside it."""
    for ending, words in _ENDINGS.items():
        if name.endswith(ending):
            return label(name.removesuffix(ending)) + words
    if name in _LABELS:
        return _LABELS[name]
    for stem, words in _IN_A_SPACE.items():
        if name == stem:
            return words
        if name.startswith(f"{stem}_"):
            return f"{words} ({name})"
    return name.replace("_", " ").capitalize()


def is_cost(metric: Mapping[str, Any]) -> bool:
    return metric.get("unit") in _COST_UNITS


def is_corrected(name: str) -> bool:
    """Whether a metric is that of the student behind the probe's two coefficients, which is not what is shipped."""
    return name.endswith("_corrected")


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


def quantity(value: Any, unit: str | None) -> str:
    """A metric's value in its unit."""
    if not is_number(value):
        return NOTHING
    if unit == "bytes":
        return size(value)
    if unit in ("parameters", "multiply-accumulates"):
        return count(value)
    if unit == "share of samples":
        return percent(value)
    return f"{number(value)} ms" if unit == "ms per call" else number(value)


def in_dtype(metric: Mapping[str, Any], role: str) -> str:
    """ " in float16" behind the figure of `role`, where student and teacher computed in different precisions."""
    dtype = (metric.get("dtypes") or {}).get(role)
    return f" in {dtype}" if dtype else ""


def interval(estimate: Mapping[str, Any] | None, unit: str | None = None) -> str:
    """ "[low, high]" of a value, empty where there is none."""
    if not estimate or not is_number(estimate.get("low")) or not is_number(estimate.get("high")):
        return ""
    return f"[{quantity(estimate['low'], unit)}, {quantity(estimate['high'], unit)}]"


def protocol(record: Mapping[str, Any]) -> str:
    """One line that belongs beside every quality figure."""
    if not record:
        return "protocol not recorded"
    parts = []
    if record.get("num_samples") is not None:
        parts.append(f"{record['num_samples']:,} samples")
    if record.get("seed") is not None:
        parts.append(f"seed {record['seed']}")
    if record.get("sampler_steps") is not None:
        sampler = str(record.get("sampler", "sampler"))
        parts.append(f"{sampler.upper() if sampler == 'ddim' else sampler} {record['sampler_steps']} steps")
    if record.get("guidance", 1.0) != 1.0:
        parts.append(f"guidance {record['guidance']:g}")
    return ", ".join([*parts, "95 % intervals"])


def marked(text: str) -> Markup:
    """A sentence of ours as HTML: what stands between backticks is code."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def lacking(skipped: Iterable[Mapping[str, Any]]) -> list[str]:
    """What was not computed and why, one line for all metrics that lack the same."""
    found: dict[Any, list[str]] = {}
    for item in skipped:
        found.setdefault(item.get("why"), []).append(str(item.get("metric")))
    return [f"{', '.join(names)}: {why}" for why, names in found.items()]


def _superscript(exponent: int) -> str:
    return str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
