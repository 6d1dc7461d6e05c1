"""How far a result can be trusted before looking at it: what is known about students of this class and ratio."""

from __future__ import annotations

import functools
import json
from importlib import resources
from typing import Literal

from diffcompress.records.report import Evidence, Known

# A ratio this much below the smallest one known still counts as inside.
SLACK = 0.8
NUM_NEAREST = 6
NOTHING_KNOWN = "no student of this denoiser class has been measured by us or published, as far as we know"
_DISTILLED = ("measured", "published")


def lookup(class_name: str, ratio: float | None) -> Evidence | None:
    """What evidence.json knows about a denoiser class near `ratio`; None when it knows nothing, or ratio is None.

    Its verdict: "inside" where some distilled student was as small, "below" where none was, "unknown" where the class
    was published but never distilled; nearest: at most NUM_NEAREST rows, the closest ratio first.
    """
    rows = [row for row in _rows() if row.class_name == class_name]
    if not rows or ratio is None:
        return None
    distilled = [row.ratio for row in rows if row.kind in _DISTILLED]
    smallest = min(distilled, default=None)
    verdict: Literal["inside", "below", "unknown"]
    if smallest is None:
        verdict = "unknown"
        told = f"no distilled {class_name} is known to us, only models of other sizes that were trained alone"
    elif ratio >= SLACK * smallest:
        verdict = "inside"
        told = f"{class_name} students as small as {100 * smallest:.3g} % of their teacher have been distilled"
    else:
        verdict = "below"
        told = (
            f"no {class_name} student as small as {100 * ratio:.3g} % of its teacher is known to us; "
            f"the smallest has {100 * smallest:.3g} %"
        )
    # Ratios compare by factors; of two equally near rows the measured one comes first.
    nearest = sorted(rows, key=lambda row: (max(ratio / row.ratio, row.ratio / ratio), row.kind))
    return Evidence(verdict=verdict, told=told, smallest_ratio=smallest, nearest=nearest[:NUM_NEAREST])


@functools.cache
def _rows() -> tuple[Known, ...]:
    file = resources.files("diffcompress.report") / "evidence.json"
    return tuple(Known.model_validate(row) for row in json.loads(file.read_text(encoding="utf-8"))["rows"])
