"""How small: a ratio, a parameter count or a file size, exactly one of the three; in which dtype. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

from diffcompress.errors import UsageError
from diffcompress.recipe import nearest

DTYPES = ("float32", "float16", "bfloat16")
SHORT_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def check(ratio: float | Sequence[float] | None, params: int | None, size: int | None) -> None:
    """Raise UsageError unless exactly one target is given and makes sense."""
    given = {"--ratio": ratio, "--params": params, "--size": size}
    named = [name for name, value in given.items() if value is not None]
    if len(named) != 1:
        told = f"{' and '.join(named)} are" if named else "nothing is"
        raise UsageError(
            f"exactly one of --ratio, --params and --size sets the target, but {told} given", "for example --ratio 0.05"
        )
    if ratio is not None:
        ratios = [ratio] if isinstance(ratio, (int, float)) else list(ratio)
        if not ratios:
            raise UsageError("the list of ratios is empty", "for example --ratio 0.1,0.05")
        for value in ratios:
            check_ratio(value)
    for name, number in (("--params", params), ("--size", size)):
        if number is not None and number <= 0:
            raise UsageError(
                f"{name} {number} is not a size", f"for example {name} {'40M' if name == '--params' else '80MB'}"
            )


def check_ratio(ratio: float) -> None:
    """Raise UsageError unless 0 < ratio < 1."""
    if not (math.isfinite(ratio) and 0 < ratio < 1):
        raise UsageError(
            f"ratio {ratio:g} is not between 0 and 1: it is the share of the teacher's parameters that is kept",
            "for example 0.05 for a student of 5 %",
        )


def check_time(seconds: float | None) -> None:
    """Raise UsageError unless `seconds` of training are a positive number."""
    if seconds is not None and not 0 < seconds < math.inf:
        raise UsageError(f"--max-time of {seconds:g} seconds is not a positive number", "for example 1800 for 30m")


def dtype(text: str | None) -> str | None:
    """float16 or, as it is often called, fp16."""
    text = SHORT_DTYPES.get(text or "", text)
    if text is not None and text not in DTYPES:
        raise UsageError(f"unknown dtype '{text}'", f"choose one of {', '.join(DTYPES)}{nearest(text, DTYPES)}")
    return text
