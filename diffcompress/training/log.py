"""metrics.jsonl of a stage: one JSON line per logged step, in step order, cut back when a run resumes."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from diffcompress.records.run_files import kept, read_text, write_text


class MetricsLog:
    def __init__(self, path: Path, first_step: int, *, active: bool, warn: Callable[[str], None]) -> None:
        """A log that drops rows from `first_step` on: they will be computed again. Only the main process is active."""
        self.path, self.active = path, active
        if active:
            lines = (kept(path, partial(read_text, errors="replace"), warn) or "").splitlines()
            write_text(path, "".join(line + "\n" for line in lines if _step(line) < first_step))

    def write(self, row: dict[str, Any]) -> None:
        if self.active:
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(row) + "\n")


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return float("inf")  # a line cut off by a kill
