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
from dataclasses import replace
from pathlib import Path

import shape_teachers
import torch
import yaml

from diffcompress import recipe as recipes
from diffcompress import runtime as runtimes
from diffcompress.bank import bank as banks
from diffcompress.bank.targets import Targets
from diffcompress.evaluation.features import find_space, protocol_for
from diffcompress.evaluation.score import evaluate_pipeline
from diffcompress.jobs.setting import texts_for
from diffcompress.jobs.students import as_student, averaged_student, copy_student, initial_student
from diffcompress.pipeline.encoding import with_prompts
from diffcompress.pipeline.load import describe, load
from diffcompress.runtime import Progress
from diffcompress.sources.resolve import resolve
from diffcompress.student import costs
from diffcompress.student.plan import StudentPlan, plan
from diffcompress.training.ema import Ema
from diffcompress.training.objective import Trainee, freeze_unused, make_adapters
from diffcompress.training.optim import Optimizer
from diffcompress.training.stage import Job, run_stage
from diffcompress.training.state import TrainingState

ARMS = yaml.safe_load((Path(__file__).parent / "arms.yaml").read_text(encoding="utf-8"))
CURVE_SAMPLES = 512


def place_of(name: str) -> str:
    """What a teacher's name resolves to: those of shape_teachers.py lie in their work folder."""
    return str(shape_teachers.WORK / name) if name in shape_teachers.CONFIGS else name


def shaped(teacher, ratio: float, recipe: recipes.Recipe, changes: dict) -> StudentPlan:
    """The plan's student, or one with other values in its config (any size: the row tells it)."""
    planned = plan(teacher.family, teacher.config, ratio=ratio, section=recipe.student)
    if not changes:
        return planned
    config = {**planned.config, **changes}
    params = costs.count(teacher.family, config).params
    return replace(planned, config=config, params=params, choice={}, notes=())


def run_once(options: argparse.Namespace, arm: str, seed: int, extra: tuple[str, ...], shape: str, work: Path) -> dict:
    """Train one student and score it; a line for results.jsonl."""
    settings = ARMS[arm]
    sets = (*options.set, *settings.get("set", []), *extra)
    reference = resolve(place_of(options.teacher))
    name = settings.get("recipe") or recipes.default_for(reference.id, describe(reference)[0].recipe)
    if options.teacher in shape_teachers.CONFIGS:
        name = "demo"
    recipe = recipes.load(name, sets, settings.get("method", "lift-place"), seed=seed)
    recipe = with_steps(recipe, options.steps)
    runtime, progress = runtimes.start("cpu"), Progress()
    teacher = load(reference)
    texts = texts_for(teacher, recipe, None, None)
    teacher = with_prompts(teacher, texts, work / "conditions", runtime, progress, recipe.bank.text_length)
    own = options.teacher in shape_teachers.CONFIGS
    space = shape_teachers.space(options.teacher) if own else find_space(teacher, options.feature_weights)
    distance = f"fd_{space.name}"
    bank = banks.fill(work / "bank", teacher, recipe.bank, options.bank_seed, None, runtime, progress)
    student_plan = shaped(teacher, options.ratio, recipe, json.loads(shape or "{}"))
    start = initial_student(teacher, student_plan, recipe, bank)
    adapters = make_adapters(start, teacher, seed) if any(s.weights.feature_kd for s in recipe.stages) else None
    precision = recipe.training.precision
    trainee = Trainee(copy_student(student_plan, start), teacher.family, adapters, precision=precision).train()
    freeze_unused(trainee, teacher.example_inputs())
    state = TrainingState(
        trainee,
        Ema(trainee, recipe.training.ema_half_life * recipe.num_steps),
        Optimizer(trainee, recipe.training),
    )
    targets = Targets(
        work / f"targets-{options.bank_seed}-{seed}", teacher, bank, recipe.targets, seed=seed,
        batch_size=recipe.training.batch_size, num_steps=recipe.num_steps, runtime=runtime, progress=progress,
    )  # fmt: skip
    curve, paused = [], [0.0]

    def score(num_samples: int, name: str) -> dict:
        student = as_student(teacher, student_plan, averaged_student(student_plan, start, state))
        protocol = protocol_for(
            space,
            teacher,
            num_samples=num_samples,
            sampler_steps=options.sampler_steps,
            guidance=recipe.evaluation.guidance,
        )
        folder = work / "scores" / f"{name}"
        return evaluate_pipeline(
            student,
            teacher,
            protocol,
            space=space,
            cache_folder=folder,
            quality_alone=True,
        )["metrics"]

    def preview(step: int) -> None:
        if step >= recipe.num_steps:
            return
        before, seconds = time.monotonic(), state.counters.seconds - paused[0]
        values = score(CURVE_SAMPLES, "curve")
        paused[0] += time.monotonic() - before
        curve.append(
            {
                "step": step,
                "seconds": seconds,
                "fd_demo": values[distance]["value"],
                "agreement": values["agreement"]["value"],
            }
        )

    every = max(1, recipe.num_steps // options.curve_points)
    recipe = recipe.model_copy(
        update={
            "training": recipe.training.model_copy(
                update={"preview_every_steps": every, "checkpoint_every_seconds": 1e9}
            )
        }
    )
    job = Job(recipe, teacher, trainee, state, targets, runtime, progress, preview)
    folder = work / "runs" / f"{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)
    started = time.monotonic()
    for index in range(len(recipe.stages)):
        run_stage(job, index, folder / f"{index}")
    seconds = time.monotonic() - started - paused[0]
    values = score(options.num_samples, "final")
    logs = [path for path in sorted(folder.glob("*/metrics.jsonl")) if path.stat().st_size]
    last = logs[-1].read_text().splitlines()[-1]
    names = {"fd_demo": distance, "kd_demo": f"kd_{space.name}", "fd_demo_held_out": f"{distance}_held_out"}
    names |= {name: name for name in ("agreement", "failed_samples", "precision", "recall", "paired_distance")}
    levels = [{k: round(v, 5) for k, v in level.items()} for level in values["agreement"]["levels"]]
    return {
        "arm": arm, "seed": seed, "extra": list(extra), "set": list(options.set), "ratio": options.ratio, "steps": recipe.num_steps, "params": student_plan.params,
        "stages": [stage.model_dump(mode="json") for stage in recipe.stages],
        "seconds": round(seconds, 1), "metrics": {n: values[m]["value"] for n, m in names.items() if m in values}, "levels": levels,
        "teacher": {n: (values[m]["teacher"] or {}).get("value") for n, m in names.items() if m in values},
        "curve": curve, "last": json.loads(last), "skipped": state.counters.skipped, "num_samples": options.num_samples, "sampler_steps": options.sampler_steps,
        "shape": shape, "macs": costs.count(teacher.family, student_plan.config).macs, "name": options.teacher,
        "widths": student_plan.config.get("block_out_channels") or student_plan.choice,
        "fingerprint": teacher.fingerprint[:12],
    }  # fmt: skip


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
    fingerprint = load(resolve(place_of(options.teacher))).fingerprint[:12]
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
                row = run_once(options, arm, seed, extra, shape, options.work)
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
