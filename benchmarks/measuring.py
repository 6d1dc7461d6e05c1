"""What benchmarks on a device share: a clock that waits for it, rows of one table, an end."""

from __future__ import annotations

import gc
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from diffcompress.runtime import synchronise


@dataclass
class Session:
    """Where measurements go. ends: by the monotonic clock; most: TFLOP/s of products here, by the name of their dtype;
    rows: what was measured, its value and unit, and what it is of."""

    device: torch.device
    tiny: bool
    work: Path
    ends: float
    most: dict[str, float] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)

    def tell(self, part: str, what: str, value: float | str | None, unit: str = "", **more: Any) -> None:
        """A row of the table, at once."""
        row = {"part": part, "what": what, "value": value, "unit": unit, **more}
        self.rows.append({name: float(f"{v:.5g}") if isinstance(v, float) else v for name, v in row.items()})
        rest = ", ".join(f"{name} {self.rows[-1][name]}" for name in more)
        print(f"| {part} | {what} | {self.rows[-1]['value']} | {unit} | {rest} |", flush=True)

    def left(self) -> float:
        """Seconds."""
        return self.ends - time.monotonic()

    def attempt(self, part: str, measure: Callable[[], None]) -> None:
        """What goes wrong becomes a row, and the next one has its turn."""
        if self.left() <= 0:
            self.tell(part, "not begun: the time is up", None, "", failed="time")
            return
        try:
            measure()
        except Exception as error:
            traceback.print_exc()
            self.tell(part, "failed", None, "", failed=f"{type(error).__name__}: {error}"[:300])
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def seconds(self, action: Callable[[], object], repeats: int = 5, before: int = 2) -> float:
        """Mean time of `action`, the device's work included."""
        repeats, before = (1, 1) if self.tiny else (repeats, before)
        for _ in range(before):
            action()
        synchronise(self.device)
        started = time.perf_counter()
        for _ in range(repeats):
            action()
        synchronise(self.device)
        return (time.perf_counter() - started) / repeats
