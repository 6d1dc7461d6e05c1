"""How close training steps with reused targets come to their ceiling, and what PLACE costs over output KD.

The ceiling is what a step would gain if the teacher cost nothing: (teacher forward + student step) / (student step),
against a step with a fresh teacher forward. Printed for the demo and for a random teacher with ten times its
parameters, the cost of the bank beside it. Medians over interleaved repeats, one thread.

    python benchmarks/step_speed.py
"""

import argparse
import itertools
import statistics
import tempfile
import time
from pathlib import Path

import diffusers
import torch

from benchmarks import runs
from diffcompress import recipe as recipes
from diffcompress.bank import bank as banks
from diffcompress.jobs.train import starting_student
from diffcompress.jobs.trainee import trainee, training_job
from diffcompress.pipeline.load import LoadedPipeline, load
from diffcompress.records.run_folder import RunFolder
from diffcompress.sources.resolve import resolve
from diffcompress.student.plan import plan
from diffcompress.training.stage import update


def ten_times(demo: LoadedPipeline, folder: Path) -> LoadedPipeline:
    """A random teacher of the same class with about ten times the parameters (3.2 times the width), from `folder`."""
    widths = [round(width * 3.2 / 8) * 8 for width in demo.config["block_out_channels"]]
    torch.manual_seed(0)
    denoiser = diffusers.UNet2DModel.from_config(dict(demo.config) | {"block_out_channels": widths})
    scheduler = diffusers.DDPMScheduler.from_pretrained(demo.reference.pipeline, subfolder="scheduler")
    diffusers.DDPMPipeline(unet=denoiser, scheduler=scheduler).save_pretrained(folder)
    return load(resolve(str(folder)))


def median_seconds(actions: dict, repeats: int) -> dict[str, float]:
    """Median time of each action, run in turn so that a drifting machine hits all alike."""
    seen: dict[str, list[float]] = {name: [] for name in actions}
    for repeat in range(repeats + 1):
        for name, action in actions.items():
            started = time.perf_counter()
            action()
            if repeat:
                seen[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seen.items()}


def measure(name: str, teacher: LoadedPipeline, ratio: float, repeats: int, bank_samples: int) -> str:
    recipe = recipes.load("default", (f"bank.num_samples={bank_samples}",))
    student_plan = plan(teacher.family, teacher.config, ratio=ratio, section=recipe.student)
    with tempfile.TemporaryDirectory() as scratch:
        run = runs.run_for(teacher, student_plan, recipe, RunFolder(Path(scratch)))
        started = time.perf_counter()
        bank = banks.fill(run.folder.bank, teacher, recipe.bank, recipe.seed, None, run.runtime, run.progress)
        bank_seconds = (time.perf_counter() - started) / bank_samples
        start = starting_student(run, bank)
        steps = bank_samples * recipe.bank.sampler_steps * 8 // recipe.training.batch_size
        place = recipe.stages[-1].model_copy(update={"num_steps": steps})
        output_kd = recipes.load("default", method="output-kd").stages[0]
        recipe = recipe.model_copy(update={"stages": (place,)})
        drawn = recipe.model_copy(update={"targets": recipe.targets.model_copy(update={"reuse": 1})})
        reused, fresh = (training_job(run, one, trainee(run, start), bank) for one in (recipe, drawn))
        held, counted = reused.targets.batch(0), itertools.count(1)
        seconds = median_seconds(
            {
                "reused": lambda: update(reused, place, 1, reused.targets.batch(next(counted) % steps)),
                "fresh": lambda: update(fresh, place, 1, fresh.targets.batch(next(counted) % steps)),
                "student": lambda: update(reused, place, 1, held),
                "output_kd": lambda: update(reused, output_kd, 1, held),
            },
            repeats,
        )
    teacher_forward = seconds["fresh"] - seconds["student"]
    ceiling = (teacher_forward + seconds["student"]) / seconds["student"]
    gain = seconds["fresh"] / seconds["reused"]
    return (
        f"| {name} | {student_plan.teacher_params:,} | {student_plan.params:,} | {1 / seconds['reused']:.2f} | {gain:.2f} | {ceiling:.2f} | {gain / ceiling:.0%} "
        f"| {bank_seconds / seconds['student'] * 1000:.0f} | {seconds['student'] / seconds['output_kd'] - 1:+.1%} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ratio", type=float, default=0.02)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--bank-samples", type=int, default=64)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(
        "| teacher | parameters | student | steps/s | gain over fresh | ceiling | of ceiling | bank cost per 1,000 samples, in student steps | PLACE over output KD, per step |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    demo = load(resolve("demo"))
    print(measure("demo", demo, options.ratio, options.repeats, options.bank_samples), flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        larger = ten_times(demo, Path(scratch) / "teacher")
        print(measure("ten times the demo", larger, options.ratio, options.repeats, options.bank_samples), flush=True)


if __name__ == "__main__":
    main()
