import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_methods_are_compared_by_training_as_the_product_does(tmp_path: Path) -> None:
    small = ["bank.num_samples=4", "bank.sampler_steps=2", "training.batch_size=2", "student.importance=magnitude"]
    sets = [text for value in small for text in ("--set", value)]
    asked = ["--steps", "2", "--seeds", "3", "--arm", "output-kd", "--num-samples", "128", "--sampler-steps", "2"]
    command = [sys.executable, "benchmarks/compare.py", *asked, *sets, "--curve-points", "1", "--work", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (row,) = map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines())
    assert (row["arm"], row["seed"], row["steps"], row["last"]["step"]) == ("output-kd", 3, 2, 1)
    assert row["params"] == 30_840
    assert {"fd_demo", "fd_demo_held_out", "agreement", "failed_samples"} <= set(row["metrics"])


def test_runs_end_well_under_kills_full_disks_damage_and_little_memory() -> None:
    """A handful of each; the numbers of docs/reliability.md are those of the whole."""
    done = subprocess.run(
        [sys.executable, "benchmarks/hostile.py", "--few"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("| all kept |") == 2 * 4
