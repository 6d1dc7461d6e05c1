"""Students of real teachers, planned from the configs in tests/teachers at six ratios: sizes, work, CPU seconds.

Everything is counted on the meta device; seconds are CPU time beyond imports, with nothing remembered between plans.

    python benchmarks/plans.py [sd15 sdxl-base ...]
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import diffusers
import torch

from diffcompress.errors import DoesNotFitError
from diffcompress.families import registry, shapes
from diffcompress.jobs.plan import run
from diffcompress.records.planned import Planned
from diffcompress.records.request import PlanOptions
from diffcompress.records.run_files import read_json
from diffcompress.runtime import Progress
from diffcompress.student import costs

TEACHERS = Path("tests/teachers")
RATIOS = (0.5, 0.25, 0.1, 0.05, 0.02, 0.01)


def planned(path: Path, ratio: float) -> tuple[Planned | DoesNotFitError, float]:
    """The plan, or why there is none, and what it took."""
    shapes._shapes.cache_clear()
    costs._counted.cache_clear()
    before = time.process_time()
    try:
        found: Any = run(PlanOptions(str(path), ratio=ratio), Progress())
    except DoesNotFitError as error:
        found = error
    return found, time.process_time() - before


def main() -> None:
    torch.set_num_threads(1)
    paths = [TEACHERS / f"{name}.json" for name in sys.argv[1:]] or sorted(TEACHERS.glob("*.json"))
    print("| teacher | " + " | ".join(f"{ratio:g}" for ratio in RATIOS) + " | MACs | CPU seconds |")
    print("| --- |" + " --- |" * (len(RATIOS) + 2), flush=True)
    for path in paths:
        class_name = read_json(path)["_class_name"]
        if class_name not in {family.class_name for family in registry.FAMILIES}:
            continue
        getattr(diffusers, class_name)  # imports it
        cells, work, seconds = [], [], []
        for ratio in RATIOS:
            found, took = planned(path, ratio)
            seconds.append(took)
            if isinstance(found, DoesNotFitError):
                cells.append("none")
                continue
            assert found.ratio and found.macs_ratio
            cells.append(f"{100 * (found.ratio / ratio - 1):+.1f}")
            work.append(found.macs_ratio / found.ratio)
        cells.append(f"{min(work):.1f} to {max(work):.1f}x" if work else "")
        cells.append(f"{min(seconds):.1f} to {max(seconds):.1f}")
        print(f"| {path.stem} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
