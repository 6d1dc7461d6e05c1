"""`--max-time`: how many steps fit, from the speed of the first steps. Fixed once and written to recipe.yaml."""

from __future__ import annotations

import time

import torch

from diffcompress.recipe import Recipe
from diffcompress.runtime import synchronise
from diffcompress.training.stage import Job, update

WARMUP_STEPS, TIMED_STEPS = 2, 6
# Checkpoints, previews and logs take the rest.
TRAINING_SHARE = 0.93


def fit_steps(job: Job, seconds: float) -> Recipe:
    """The recipe with `num_steps` scaled so that all stages together take about `seconds`, stages in proportion.

    Times a few real steps of every stage, and the teacher's share of a step; the student's weights are put back, the
    rest of the job is used up. At least one step per stage. Every process returns the same recipe.
    """
    recipe, runtime, model, targets = job.recipe, job.runtime, job.state.model, job.targets
    before = {name: value.clone() for name, value in model.state_dict().items()}
    started = time.monotonic()
    entries = targets.drawn(0)
    teacher_seconds = time.monotonic() - started
    forward_share = 1 - targets.num_trajectory / targets.pool_size
    target_seconds = teacher_seconds * (1.0 if recipe.targets.reuse == 1 else forward_share / recipe.targets.reuse)
    total = 0.0
    for stage in recipe.stages:
        for step in range(WARMUP_STEPS + TIMED_STEPS):
            if step == WARMUP_STEPS:
                synchronise(runtime.device)
                started = time.monotonic()
            update(job, stage, step, targets.assembled(entries))
        synchronise(runtime.device)
        step_seconds = (time.monotonic() - started) / TIMED_STEPS
        total += stage.num_steps * (step_seconds + target_seconds)
    model.load_state_dict(before)
    slowest = runtime.accelerator.gather(torch.tensor([total], device=runtime.device)).max().item()
    factor = TRAINING_SHARE * seconds / slowest
    stages = tuple(s.model_copy(update={"num_steps": max(1, round(s.num_steps * factor))}) for s in recipe.stages)
    return recipe.model_copy(update={"stages": stages})


def extend(recipe: Recipe, seconds: float, spent: float) -> Recipe:
    """More time for a finished run: the last stage gets as many more steps as fit, at the speed seen so far."""
    more = max(1, round(max(0.0, TRAINING_SHARE * seconds - spent) * recipe.num_steps / max(spent, 1e-6)))
    last = recipe.stages[-1].model_copy(update={"num_steps": recipe.stages[-1].num_steps + more})
    return recipe.model_copy(update={"stages": (*recipe.stages[:-1], last)})
