"""How often the doctor names a cause on the runs of results.jsonl, and how near healthy ones come to its thresholds.

    python benchmarks/false_alarms.py

A run is healthy whose predictions and samples are: agreement of 0.9, at most 5 % of the samples failed. Of its log a
line of results.jsonl keeps the last row alone, which stands for all rows here: whatever a run ended with, it is taken to
have had from the beginning, so that what a whole log would clear is an alarm too. Movement of the weights, recall and
variance of samples are not in these lines.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diffcompress.recipe import LossWeights, Recipe, StageSection
from diffcompress.records.evaluation import Level, Measured
from diffcompress.report import doctor

RESULTS = Path(__file__).with_name("results.jsonl")
STAGE = StageSection(name="last", num_steps=1, weights=LossWeights(place=1.0))
CAUSES = ("gradients clipped", "gate shut", "slope stuck", "one noise level off")


def cases() -> Iterator[tuple[doctor.Case, bool]]:
    """Every run, and whether it is healthy."""
    for line in RESULTS.read_text(encoding="utf-8").splitlines():
        run = json.loads(line)
        told = run["metrics"]
        agreement = Measured(value=told["agreement"], levels=[Level(**level) for level in run["levels"]])
        row = {key: value for key, value in run.get("last", {}).items() if isinstance(value, int | float)}
        logs = [[row] * doctor.FEWEST_ROWS] if row else []
        case = doctor.Case(Recipe(stages=(STAGE,)), logs, {"agreement": agreement})
        yield case, not case.is_poor and told["failed_samples"] <= 0.05


def nearest(cause: str, case: doctor.Case) -> float | None:
    """How far a run is on the way to an alarm: its value over the threshold, or the other way where less is worse."""
    row: Any = case.logs[0][0] if case.logs else {}
    if cause == "gate shut" and "fine_weight" in row:
        return doctor.SHUT / max(row["fine_weight"], 1e-9)
    if cause == "slope stuck" and "slope" in row:
        return abs(row["slope"] - 1) / doctor.FAR_SLOPE
    if cause == "gradients clipped" and "grad_norm" in row:
        return row["grad_norm"] / (doctor.MUCH * case.recipe.training.max_grad_norm)
    if cause == "one noise level off":
        errors = [level.relative_error or 0.0 for level in case.metrics["agreement"].levels]
        beside = [max(errors[max(0, i - 1) : i] + errors[i + 1 : i + 2]) for i in range(len(errors))]
        found = zip(errors, beside, strict=True)
        return max((e / b / doctor.MUCH for e, b in found if e > doctor.LARGE_ERROR), default=0.0)
    return None


def main() -> None:
    found = [(case, healthy, {one.cause for one in doctor.diagnose(case)}) for case, healthy in cases()]
    print("| cause | healthy runs that tell | alarms | nearest, of the threshold | other runs | alarms |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for cause in CAUSES:
        cells = [cause]
        for well in (True, False):
            near = [(nearest(cause, case), cause in named) for case, healthy, named in found if healthy == well]
            told = [(value, alarm) for value, alarm in near if value is not None]
            cells += [f"{len(told)}", f"{sum(alarm for _, alarm in told)}"]
            cells += [f"{max(value for value, _ in told):.2f}"] * well
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
