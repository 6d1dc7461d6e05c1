"""`--max-time`: how many steps fit, from the speed of the first steps. Fixed once and written to recipe.yaml."""

from __future__ import annotations

import copy
import time
from pathlib import Path

import torch

from diffcompress.data.targets import Targets
from diffcompress.recipe import Recipe
from diffcompress.training.micro import backward
from diffcompress.training.optim import make_optimizer
from diffcompress.training.stage import Job

WARMUP_STEPS, TIMED_STEPS = 2, 6
# Checkpoints, previews and logs take the rest.
TRAINING_SHARE = 0.93


def fit_steps(job: Job, seconds: float, folder: Path) -> Recipe:
    """The recipe with `num_steps` scaled so that all stages together take about `seconds`, stages in proportion.

    Times a few real steps of every stage on a throw-away copy of the student, and the teacher's share of a step. At
    least one step per stage. Every process returns the same recipe.
    """
    recipe, runtime = job.recipe, job.runtime
    trainee = copy.deepcopy(job.state.model)
    optimizer = make_optimizer(trainee, recipe.training)
    scratch = Targets(
        folder, job.teacher, job.targets.bank, recipe.targets.model_copy(update={"reuse": 1}),
        seed=recipe.seed, batch_size=recipe.training.batch_size, num_steps=1, runtime=runtime, progress=job.progress,
    )  # fmt: skip
    started = time.monotonic()
    batch = scratch.batch(0)
    teacher_seconds = time.monotonic() - started
    forward_share = 1 - job.targets.num_trajectory / job.targets.pool_size
    target_seconds = teacher_seconds * (1.0 if recipe.targets.reuse == 1 else forward_share / recipe.targets.reuse)
    size = recipe.training.micro_batch_size or len(batch.noisy)
    total = 0.0
    for stage in recipe.stages:
        for step in range(WARMUP_STEPS + TIMED_STEPS):
            if step == WARMUP_STEPS:
                started = time.monotonic()
            loss, _ = backward(trainee, job.teacher, batch, stage, runtime, runtime.mean, size)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            float(loss)
        step_seconds = (time.monotonic() - started) / TIMED_STEPS
        total += stage.num_steps * (step_seconds + target_seconds)
    slowest = runtime.accelerator.gather(torch.tensor([total], device=runtime.device)).max().item()
    factor = TRAINING_SHARE * seconds / slowest
    stages = tuple(s.model_copy(update={"num_steps": max(1, round(s.num_steps * factor))}) for s in recipe.stages)
    return recipe.model_copy(update={"stages": stages})


def extend(recipe: Recipe, seconds: float, timings: dict[str, float]) -> Recipe:
    """More time for a finished run: the last stage gets as many more steps as fit, at the speed seen so far."""
    spent = sum(value for name, value in timings.items() if name.startswith("stage-"))
    more = max(1, round(max(0.0, TRAINING_SHARE * seconds - spent) * recipe.num_steps / max(spent, 1e-6)))
    last = recipe.stages[-1].model_copy(update={"num_steps": recipe.stages[-1].num_steps + more})
    return recipe.model_copy(update={"stages": (*recipe.stages[:-1], last)})
