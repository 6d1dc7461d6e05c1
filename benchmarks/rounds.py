"""How long is long enough: students trained in rounds, each of as many steps as all before, judged after every round.

By the held-out error that `shrink` stops by, and by the distance that it stands for. One JSON line for each round in
`--work`; the same command goes on.

    python benchmarks/rounds.py --teacher demo --ratio 0.05 --rounds 5
    python benchmarks/rounds.py --table
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks import compare, runs, shape_teachers
from diffcompress import recipe as recipes
from diffcompress.bank import bank as banks
from diffcompress.jobs.deliver import shipped
from diffcompress.jobs.rounds import held_out_error
from diffcompress.jobs.settle import write_recipe
from diffcompress.jobs.train import starting_student, train
from diffcompress.records.run_folder import RunFolder
from diffcompress.training import budget


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--teacher", default="demo")
    parser.add_argument("--ratio", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1400, help="of the first round")
    parser.add_argument("--num-samples", type=int, default=1024)
    parser.add_argument("--feature-weights", default=None)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--work", type=Path, default=Path("build/rounds"))
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    if options.table:
        print(table(options.work / "results.jsonl"))
    else:
        trained(options)


def trained(options: argparse.Namespace) -> None:
    """A run by the teacher's own recipe, round by round."""
    own = options.teacher if options.teacher in shape_teachers.CONFIGS else None
    name = "demo" if own else recipes.default_for(options.teacher)
    wanted = [*options.set, f"evaluation.num_samples={options.num_samples}", "training.checkpoint_every_seconds=1e9"]
    recipe = compare.with_steps(recipes.load(name, tuple(wanted), seed=options.seed), options.steps)
    shared = runs.folder_of(options.work, options.teacher)
    folder = RunFolder(shared / f"{options.ratio:g}-{options.seed}", shared=shared)
    teacher = compare.loaded(argparse.Namespace(teacher=options.teacher, work=shared), recipe)
    run = runs.run_for(teacher, runs.shaped(teacher, options.ratio, recipe, {}), recipe, folder)
    folder.path.mkdir(parents=True, exist_ok=True)
    bank = banks.fill(folder.bank, teacher, recipe.bank, recipe.seed, None, run.runtime, run.progress)
    start = starting_student(run, bank)
    judge = compare.Judge(run, compare.space_of(options, teacher))
    for number in range(options.rounds):
        settled, student = train(run, start, bank)
        scores = judge.scores(shipped(run, student))
        row = {
            "teacher": options.teacher, "ratio": options.ratio, "seed": options.seed, "round": number + 1,
            "steps": settled.num_steps, "seconds": round(folder.trained_seconds, 1),
            "error": held_out_error(run, settled, student),
            **{n: scores[n].value for n in ("agreement", "failed_samples") if n in scores},
            "fd": scores[f"fd_{judge.space.name}"].value,
        }  # fmt: skip
        with (options.work / "results.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)
        write_recipe(run, budget.doubled(settled))


def table(results: Path) -> str:
    """Error and distance of each round, and how much lower than after half of its steps."""
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    lines = ["| teacher, ratio, seed | steps | minutes | held-out error | fd |", "| --- | ---: | ---: | --- | --- |"]
    last: dict[str, Any] = {}
    for row in sorted(rows, key=lambda row: (_name(row), row["steps"])):
        told = {name: f"{row[name]:.3g}" for name in ("error", "fd")}
        first = _name(row) != (last and _name(last))
        if not first:
            told = {name: f"{text} ({100 * (row[name] / last[name] - 1):+.0f} %)" for name, text in told.items()}
        head = _name(row) if first else ""
        lines.append(f"| {head} | {row['steps']:,} | {row['seconds'] / 60:.1f} | {told['error']} | {told['fd']} |")
        last = row
    return "\n".join(lines)


def _name(row: dict[str, Any]) -> str:
    return f"`{row['teacher']}` {row['ratio']:g}, {row['seed']}"


if __name__ == "__main__":
    main()
