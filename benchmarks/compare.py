"""Compare methods at equal budget: same teacher, bank, targets and student start, only losses differ (`make bench`).

Resumable: one JSON line per finished run goes to WORK/results.jsonl, and finished runs are skipped. Every line holds
the curve of `fd_demo` against steps and seconds, so equal-time figures are read from the same runs.

    python benchmarks/compare.py --ratio 0.02 --seeds 0 1 2 --arm lift-place --arm output-kd
    python benchmarks/compare.py --teacher grey16 --shape '{"block_out_channels": [12, 10, 9]}' --arm output-kd-l1
    python benchmarks/compare.py --table

Teachers of benchmarks/shape_teachers.py go by name. `--shape` changes values of the planned student's config; each makes one
more run of every arm.
"""

import argparse
import itertools
import json
import os
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks import runs, shape_teachers
from diffcompress import recipe as recipes
from diffcompress import runtime as runtimes
from diffcompress.bank import bank as banks
from diffcompress.evaluation.cache import SampleCache
from diffcompress.evaluation.features import FeatureSpace, find_space
from diffcompress.evaluation.score import Contest, evaluate_pipeline
from diffcompress.images.texts import texts_for
from diffcompress.jobs.deliver import judged, shipped
from diffcompress.jobs.run import Run
from diffcompress.jobs.train import starting_student, train
from diffcompress.pipeline.encoding import with_prompts
from diffcompress.pipeline.load import LoadedPipeline, describe, load
from diffcompress.records.evaluation import Metrics
from diffcompress.records.run_files import read_json
from diffcompress.records.run_folder import RunFolder
from diffcompress.runtime import Progress
from diffcompress.sources.resolve import resolve
from diffcompress.student import costs

ARMS = yaml.safe_load((Path(__file__).parent / "arms.yaml").read_text(encoding="utf-8"))
CURVE_SAMPLES = 512


def recipe_of(options: argparse.Namespace, arm: str, seed: int, extra: tuple[str, ...]) -> recipes.Recipe:
    """The arm's recipe at the asked budget, with scores on the way for the curve."""
    settings, reference = ARMS[arm], resolve(shape_teachers.place_of(options.teacher))
    name = settings.get("recipe") or recipes.default_for(reference.id, describe(reference)[0].recipe)
    if options.teacher in shape_teachers.CONFIGS:
        name = "demo"
    mine = (
        f"evaluation.num_samples={options.num_samples}",
        f"evaluation.sampler_steps={options.sampler_steps}",
        f"training.preview_every_steps={max(1, options.steps // options.curve_points)}",
        "training.checkpoint_every_seconds=1e9",
    )
    sets = (*mine, *options.set, *settings.get("set", []), *extra)
    return with_steps(recipes.load(name, sets, settings.get("method", "lift-place"), seed=seed), options.steps)


def loaded(options: argparse.Namespace, recipe: recipes.Recipe) -> LoadedPipeline:
    """The teacher with its prompts encoded, in the work folder."""
    teacher, texts_at = load(resolve(shape_teachers.place_of(options.teacher))), options.work / "conditions"
    texts = texts_for(teacher, recipe, None, None)
    return with_prompts(teacher, texts, texts_at, runtimes.start("cpu"), Progress(), recipe.bank.text_length)


def space_of(options: argparse.Namespace, teacher: LoadedPipeline) -> FeatureSpace | None:
    own = options.teacher in shape_teachers.CONFIGS
    return shape_teachers.space(options.teacher) if own else find_space(teacher, options.feature_weights)


class Judge:
    """Scores of a student on the way and in the end, and the seconds of training without them."""

    def __init__(self, run: Run, space: FeatureSpace | None) -> None:
        self.run, self.started, self.paused = run, time.monotonic(), 0.0
        self.curve: list[dict[str, Any]] = []
        space, self.protocol = judged(run.teacher, run.request.recipe, Progress(), space)
        if space is None:
            raise SystemExit("there is no feature space for this teacher: name one with --feature-weights")
        self.space = space

    @property
    def seconds(self) -> float:
        """Since the beginning, without the time of scoring."""
        return time.monotonic() - self.started - self.paused

    def scores(self, student: LoadedPipeline, **changes: Any) -> Metrics:
        protocol = self.protocol.model_copy(update=changes)
        run, contest = self.run, Contest(student, self.run.teacher, protocol, self.space)
        cache = SampleCache(run.folder.cache / str(protocol.num_samples), run.runtime, Progress())
        return evaluate_pipeline(contest, cache, quality_alone=True).metrics

    def look(self, step: int, student: LoadedPipeline) -> None:
        if step >= self.run.request.recipe.num_steps:
            return
        seconds, before = self.seconds, time.monotonic()
        values = self.scores(student, num_samples=CURVE_SAMPLES)
        names = {"fd_demo": f"fd_{self.space.name}", "agreement": "agreement", "paired_distance": "paired_distance"}
        scores = {name: values[metric].value for name, metric in names.items() if metric in values}
        self.curve.append({"step": step, "seconds": seconds, **scores})
        self.paused += time.monotonic() - before


def run_once(options: argparse.Namespace, arm: str, seed: int, extra: tuple[str, ...], shape: str) -> dict:
    """Train one student and score it; a line for results.jsonl."""
    recipe = recipe_of(options, arm, seed, extra)
    teacher = loaded(options, recipe)
    folder = RunFolder(options.work / "runs" / f"{os.getpid()}", shared=options.work)
    folder.targets = options.work / f"targets-{options.bank_seed}-{seed}"
    shutil.rmtree(folder.path, ignore_errors=True)
    run = runs.run_for(teacher, runs.shaped(teacher, options.ratio, recipe, json.loads(shape or "{}")), recipe, folder)
    bank = banks.fill(folder.bank, teacher, recipe.bank, options.bank_seed, None, run.runtime, run.progress)
    start = starting_student(run, bank)
    judge = Judge(run, space_of(options, teacher))
    recipe, trained = train(run, start, bank, look=judge.look)
    seconds = round(judge.seconds, 1)
    values = judge.scores(shipped(run, trained))
    row = row_of(options, run, recipe, judge.space.name, values)
    shutil.rmtree(folder.path)
    return {"arm": arm, "extra": list(extra), "shape": shape, "seconds": seconds, "curve": judge.curve, **row}


def row_of(options: argparse.Namespace, run: Run, recipe: recipes.Recipe, space: str, values: Metrics) -> dict:
    """What is told of a run beside what was asked for."""
    teacher, student, stages = run.teacher, run.plan, run.folder.stages()
    names = {"fd_demo": f"fd_{space}", "kd_demo": f"kd_{space}", "fd_demo_held_out": f"fd_{space}_held_out"}
    names |= {name: name for name in ("agreement", "failed_samples", "precision", "recall", "paired_distance")}
    logs = [log for stage in stages if (log := stage / "metrics.jsonl").stat().st_size]
    return {
        "seed": recipe.seed,
        "set": list(options.set),
        "ratio": options.ratio,
        "steps": recipe.num_steps,
        "params": student.params,
        "stages": [stage.model_dump(mode="json") for stage in recipe.stages],
        "micro_batch_size": recipe.training.micro_batch_size,
        "metrics": {n: values[m].value for n, m in names.items() if m in values},
        "levels": [
            {k: round(v, 5) for k, v in level.items()}
            for level in (one.to_json() for one in values["agreement"].levels)
        ],
        "teacher": {
            n: beside and beside.value for n, m in names.items() if m in values for beside in (values[m].teacher,)
        },
        "last": runs.last_row(logs[-1]),
        "skipped": read_json(stages[-1] / "final" / "state.json")["skipped"],
        "num_samples": options.num_samples,
        "sampler_steps": options.sampler_steps,
        "macs": costs.count(teacher.family, student.config).macs,
        "name": options.teacher,
        "widths": student.config.get("block_out_channels") or student.choice,
        "fingerprint": teacher.fingerprint[:12],
    }


def with_steps(recipe: recipes.Recipe, num_steps: int) -> recipes.Recipe:
    """All stages scaled to `num_steps` in total."""
    total = recipe.num_steps
    stages, used = [], 0
    for number, stage in enumerate(recipe.stages):
        share = num_steps - used if number + 1 == len(recipe.stages) else round(stage.num_steps * num_steps / total)
        used += share
        stages.append(stage.model_copy(update={"num_steps": share}))
    return recipe.model_copy(update={"stages": tuple(stages)})


def key(row: dict) -> tuple:
    return (
        row["arm"],
        tuple(row["extra"]),
        tuple(row["set"]),
        row["ratio"],
        row["steps"],
        row.get("shape", ""),
        row["fingerprint"],
    )


def table(path: Path) -> None:
    """Mean and standard deviation over seeds, one line for each arm and setting."""
    groups: dict[tuple, list[dict]] = {}
    for line in path.read_text().splitlines():
        row = json.loads(line)
        groups.setdefault(key(row), []).append(row)
    print("| arm | settings | ratio | steps | seeds | fd_demo (each) | mean | held out | agreement | failed % | s |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for (arm, extra, sets, ratio, steps, shape, _), rows in sorted(
        groups.items(), key=lambda item: statistics.mean(r["metrics"]["fd_demo"] for r in item[1])
    ):
        each = [r["metrics"]["fd_demo"] for r in rows]
        mean = {
            n: statistics.mean(r["metrics"][n] for r in rows)
            for n in ("fd_demo_held_out", "agreement", "failed_samples")
        }
        print(
            f"| {arm} | {' '.join((shape, *sets, *extra)) or '-'} | {ratio} | {steps} | {len(rows)} | {', '.join(f'{v:.1f}' for v in each)} | {statistics.mean(each):.2f} "
            f"| {mean['fd_demo_held_out']:.2f} | {mean['agreement']:.4f} | {100 * mean['failed_samples']:.1f} | {statistics.mean(r['seconds'] for r in rows):.0f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="demo")
    parser.add_argument("--feature-weights")
    parser.add_argument("--ratio", type=float, default=0.02)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--bank-seed", type=int, default=0)
    parser.add_argument("--arm", action="append", choices=sorted(ARMS))
    parser.add_argument("--set", action="append", default=[], help="for every arm")
    parser.add_argument(
        "--try",
        action="append",
        default=[],
        dest="tries",
        help="a semicolon-separated group of settings; each group is one more run of every arm",
    )
    parser.add_argument("--shape", action="append", default=[], help="JSON: other values of the student's config")
    parser.add_argument("--num-samples", type=int, default=1024)
    parser.add_argument("--sampler-steps", type=int, default=25)
    parser.add_argument("--curve-points", type=int, default=2, help="scores on the way, the last one included")
    parser.add_argument("--work", type=Path, default=Path("build/bench"))
    parser.add_argument("--table", action="store_true", help="print the results so far and leave")
    options = parser.parse_args()
    results = options.work / "results.jsonl"
    if options.table:
        return table(results)
    torch.set_num_threads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    fingerprint = load(resolve(shape_teachers.place_of(options.teacher))).fingerprint[:12]
    for seed in options.seeds:
        tries = [tuple(group.split(";")) for group in options.tries] or [()]
        for shape, extra in itertools.product(options.shape or [""], tries):
            for arm in options.arm or sorted(ARMS):
                done = (
                    {(*key(r), r["seed"]) for r in map(json.loads, results.read_text().splitlines())}
                    if results.exists()
                    else set()
                )
                if (arm, extra, tuple(options.set), options.ratio, options.steps, shape, fingerprint, seed) in done:
                    continue
                row = run_once(options, arm, seed, extra, shape)
                with results.open("a") as stream:
                    stream.write(json.dumps(row) + "\n")
                print(
                    json.dumps(
                        {k: row[k] for k in ("arm", "extra", "shape", "params", "macs", "seed", "seconds", "metrics")}
                    ),
                    flush=True,
                )


if __name__ == "__main__":
    main()
