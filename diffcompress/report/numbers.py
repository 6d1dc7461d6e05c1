"""What reports say of measured values and protocols."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from markupsafe import Markup, escape

from diffcompress.records.evaluation import Measured, Missing, Value
from diffcompress.records.metrics import Kind
from diffcompress.records.protocol import Protocol
from diffcompress.records.record import Empty
from diffcompress.records.units import NOTHING, count, duration, is_number, number, percent, short, size, times

# Templates find all that they tell numbers with in this module.
__all__ = [
    "NOTHING", "better", "count", "drawn", "duration", "in_dtype", "interval", "is_number", "lacking", "marked",
    "number", "percent", "protocol", "quantity", "short", "size", "times",
]  # fmt: skip

_BETTER = {"lower": "lower is better", "higher": "higher is better"}


def better(direction: str | None) -> str:
    return _BETTER.get(direction or "", "")


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
    told = f"{samples or record.num_samples:,} samples"
    if record.aside_samples is not None and samples is None:
        told += f" ({record.aside_samples:,} of the student before training, and corrected)"
    return ", ".join([told, drawn(record), "95 % intervals"])


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


_TOLD: dict[str, Callable[[Any], str]] = {
    "number": number,
    "count": count,
    "bytes": size,
    "share": percent,
    "ms": lambda value: f"{number(value)} ms",
}
