"""`--max-time`: how many steps fit, from the speed of the first steps. Fixed once and written to recipe.yaml."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from diffcompress.recipe import Recipe, TargetsSection
from diffcompress.runtime import synchronise
from diffcompress.training.stage import Job, update

WARMUP_STEPS, TIMED_STEPS = 2, 6
# Checkpoints, previews and logs take the rest.
TRAINING_SHARE = 0.93


@dataclass(frozen=True)
class Timing:
    """Seconds of one step, all stages as they are mixed, and of the teacher's predictions for one batch."""

    step: float
    teacher: float


def timed(job: Job) -> Timing:
    """From a few real steps of every stage, the slowest process's.

    The student's weights are put back, the rest of the job is used up.
    """
    recipe, runtime, model, targets = job.recipe, job.runtime, job.state.model, job.targets
    before = {name: value.clone() for name, value in model.state_dict().items()}
    started = time.monotonic()
    entries = targets.drawn(0)
    teacher_seconds = time.monotonic() - started
    total = 0.0
    for stage in recipe.stages:
        for step in range(WARMUP_STEPS + TIMED_STEPS):
            if step == WARMUP_STEPS:
                synchronise(runtime.device)
                started = time.monotonic()
            update(job, stage, step, targets.assembled(entries))
        synchronise(runtime.device)
        total += stage.num_steps * (time.monotonic() - started) / TIMED_STEPS
    model.load_state_dict(before)
    measured = torch.tensor([total / max(1, recipe.num_steps), teacher_seconds], device=runtime.device)
    return Timing(*runtime.accelerator.gather(measured[None]).amax(0).tolist())


def fit_steps(job: Job, seconds: float) -> Recipe:
    """The recipe with `num_steps` scaled so that all stages together take about `seconds`, stages in proportion.

    As `timed` says. At least one step per stage. Every process returns the same recipe.
    """
    timing, targets = timed(job), job.targets
    free_steps = targets.bank.num_trajectory * targets.section.reuse / targets.batch_size
    num_steps = fitting(TRAINING_SHARE * seconds, timing.step, timing.teacher, targets.section, free_steps)
    return scaled(job.recipe, num_steps)


def scaled(recipe: Recipe, num_steps: float) -> Recipe:
    """The recipe with about `num_steps`, stages in proportion; at least one step per stage."""
    factor = num_steps / max(1, recipe.num_steps)
    stages = tuple(s.model_copy(update={"num_steps": max(1, round(s.num_steps * factor))}) for s in recipe.stages)
    return recipe.model_copy(update={"stages": stages})


def fitting(
    seconds: float, step_seconds: float, teacher_seconds: float, section: TargetsSection, free_steps: float
) -> float:
    """Steps that fit into `seconds`, each `step_seconds` and its part of the teacher's time.

    teacher_seconds: for the predictions of one batch; free_steps: how many the bank's stored calls are enough for.
    """
    if section.reuse == 1:
        return seconds / (step_seconds + teacher_seconds)
    asked = teacher_seconds / section.reuse
    # Of what a share of stored calls leaves, and of what there are not enough of, the one that is more.
    by_share = seconds / (step_seconds + (1 - section.trajectory_share) * asked)
    return min(by_share, (seconds + free_steps * asked) / (step_seconds + asked))


def doubled(recipe: Recipe, times: int = 1) -> Recipe:
    """As many steps again, all of the last stage; so many times."""
    return _longer(recipe, (2**times - 1) * recipe.num_steps)


def extend(recipe: Recipe, seconds: float, spent: float) -> Recipe:
    """More time for a finished run: the last stage gets as many more steps as fit, at the speed seen so far."""
    more = max(1, round(max(0.0, TRAINING_SHARE * seconds - spent) * recipe.num_steps / max(spent, 1e-6)))
    return _longer(recipe, more)


def _longer(recipe: Recipe, steps: int) -> Recipe:
    last = recipe.stages[-1].model_copy(update={"num_steps": recipe.stages[-1].num_steps + steps})
    return recipe.model_copy(update={"stages": (*recipe.stages[:-1], last)})
