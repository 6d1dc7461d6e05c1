"""How small: a ratio, a parameter count or a file size, exactly one of the three. Loads no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

from diffcompress.errors import UsageError


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
