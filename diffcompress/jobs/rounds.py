"""How long a run trains that nobody gave a time: in rounds, each of as many steps as all before it, while that pays."""

from __future__ import annotations

from functools import partial

import torch
from diffusers import ModelMixin
from torch import Tensor

from diffcompress.bank.bank import Bank
from diffcompress.bank.shards import Tensors, make_shards, read_shards
from diffcompress.evaluation import agreement
from diffcompress.jobs.run import Run
from diffcompress.jobs.settle import write_recipe
from diffcompress.jobs.students import as_student
from diffcompress.jobs.train import train
from diffcompress.noise.streams import ROUNDS_SEED_SHIFT
from diffcompress.pipeline.load import LoadedPipeline
from diffcompress.pipeline.sampling import automatic_batch_size, conditioning_for, sample
from diffcompress.recipe import Recipe
from diffcompress.records import fingerprints
from diffcompress.records.rounds import Round, Rounds
from diffcompress.records.run_files import kept, read_record, write_checked
from diffcompress.records.run_folder import read_recipe
from diffcompress.records.units import percent
from diffcompress.training import budget

# Samples of the teacher that neither bank nor evaluation holds, and levels of noise that predictions are compared on.
NUM_IMAGES, NUM_LEVELS = 64, 10
# Of these samples, drawn by a process at a time.
SHARD_SIZE = 8


def trained(run: Run, start: ModelMixin, bank: Bank) -> tuple[Recipe, ModelMixin]:
    """As `train`; where the recipe's last stage has a `least_gain` and nobody gave a time, again with twice the steps,
    until that pays no more (`Rounds.end`). Stopped anywhere, it goes on where it was."""
    recipe, student = train(run, start, bank)
    if recipe.stages[-1].least_gain is None or run.request.asked.max_time is not None:
        return recipe, student
    while True:
        _settle(run, recipe, student)
        if read_recipe(run.folder.recipe).num_steps == recipe.num_steps:
            return recipe, student
        recipe, student = train(run, start, bank)


def _settle(run: Run, recipe: Recipe, student: ModelMixin) -> None:
    """Judge the student after its last round, and write the recipe with another one where it pays."""
    steps, least = recipe.num_steps, recipe.stages[-1].least_gain
    assert least is not None
    found = Rounds()
    if run.runtime.is_main:
        found = kept(run.folder.rounds, partial(read_record, kind=Rounds), run.progress.warn) or found
    if run.runtime.anywhere(run.runtime.is_main and steps not in [one.steps for one in found.rounds]):
        run.runtime.stop_together()
        with run.timed("held-out"):
            error = held_out_error(run, recipe, student)
        judged = Round(steps=steps, seconds=run.folder.trained_seconds, error=error)
        found = Rounds(rounds=[*found.rounds, judged])
    if run.runtime.is_main:
        _write(run, recipe, found, least)
    run.runtime.wait()


def _write(run: Run, recipe: Recipe, found: Rounds, least: float) -> None:
    """What the rounds so far came to, and the recipe with another one where that pays."""
    ended = found.end(least)
    write_checked(run.folder.rounds, found.model_copy(update={"ended": ended}).to_json())
    if ended is not None:
        run.progress.note(ended)
        return
    if found.gain is not None:
        lower = percent(found.gain, 2)
        run.progress.note(f"{recipe.num_steps:,} steps: held-out error {lower} lower than after half of them")
    write_recipe(run, budget.doubled(recipe))


def held_out_error(run: Run, recipe: Recipe, student: ModelMixin) -> float:
    """Root of the student's squared error over the variance of its teacher's predictions, on held-out samples, of
    which each process computes a part."""
    teacher, seed = run.teacher.apart, recipe.seed + ROUNDS_SEED_SHIFT
    clean = _held_out(run, teacher, recipe, seed)
    found = agreement.measure(
        {"student": as_student(teacher, run.plan, student)},
        teacher,
        clean,
        conditioning_for(teacher, range(len(clean)), seed),
        num_levels=NUM_LEVELS,
        seed=seed,
        batch_size=automatic_batch_size(teacher),
        runtime=run.runtime,
    )
    return float(max(0.0, 1 - found["student"].agreement.value) ** 0.5)


def _held_out(run: Run, teacher: LoadedPipeline, recipe: Recipe, seed: int) -> Tensor:
    """Clean samples, drawn once, as the bank's are."""
    folder, section = run.folder.held_out, recipe.bank
    size = min(SHARD_SIZE, automatic_batch_size(teacher))

    def make(items: range) -> Tensors:
        parts = [range(first, min(first + size, items.stop)) for first in range(items.start, items.stop, size)]
        steps, scale = section.sampler_steps, section.guidance
        return {
            "clean": torch.cat([sample(teacher, rows, seed=seed, num_steps=steps, guidance=scale) for rows in parts])
        }

    of = [teacher.fingerprint, seed, section.sampler_steps, section.guidance, teacher.conditions.digest]
    key = fingerprints.of_json(of)
    make_shards(folder, NUM_IMAGES, SHARD_SIZE, make, run.runtime, run.progress, "held-out", key)
    return read_shards(folder, NUM_IMAGES, SHARD_SIZE, key)["clean"]
