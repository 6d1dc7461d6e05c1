"""What `plan` says that a run takes, beside what it took, part by part: `python benchmarks/told_before.py demo 0.05`.

In seconds of CPU time, on one thread, for both: those of the clock are as much the neighbours'. `plan` is asked before
and after the run.
"""

from __future__ import annotations

import argparse
import tempfile
import time

import torch

import diffcompress
from diffcompress.records import shapes
from diffcompress.records.run_files import read_json
from diffcompress.records.run_folder import RunFolder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("teacher")
    parser.add_argument("ratio", type=float)
    parser.add_argument("--steps", type=int, default=300)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    time.monotonic = time.process_time  # what timings are taken by, in the package too
    overrides = tuple(
        f"stages.{index}.num_steps={steps}" for index, steps in enumerate((asked.steps // 10, asked.steps * 9 // 10))
    )

    def told() -> dict[str, float]:
        planned = diffcompress.plan(asked.teacher, ratio=asked.ratio, overrides=overrides)
        assert isinstance(planned, dict)
        expected: dict[str, float] = planned["expected"]
        return expected

    told()  # libraries warm up
    before = told()
    with tempfile.TemporaryDirectory() as folder:
        diffcompress.shrink(asked.teacher, ratio=asked.ratio, overrides=overrides, output=f"{folder}/run")
        took = read_json(RunFolder(f"{folder}/run").timings, kind=shapes.Timings)
    after = told()
    real = {
        "bank": took["bank"] + took.get("grown", 0),
        "start": took["student-init"],
        "training": sum(seconds for name, seconds in took.items() if name.startswith("stage-")),
        "evaluation": took["evaluation"],
    }
    real["all four"] = sum(real.values())
    for expected in (before, after):
        expected["all four"] = sum(expected[name] for name in real if name != "all four")
    print(f"{asked.teacher} {asked.ratio:g}, {asked.steps} steps: expected before, after; took; ratios")
    for name, seconds in real.items():
        first, second = before[name], after[name]
        print(f"  {name:12s} {first:7.1f} {second:7.1f} {seconds:7.1f}   {first / seconds:.2f} {second / seconds:.2f}")


if __name__ == "__main__":
    main()
