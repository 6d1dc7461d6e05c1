"""The one training loop, run once per stage: status, save, done?, gradient, update."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from diffcompress.bank.targets import Batch, Targets
from diffcompress.errors import DiffCompressError, RunStopped
from diffcompress.pipeline.load import LoadedPipeline
from diffcompress.recipe import Recipe, StageSection
from diffcompress.runtime import Progress, Runtime
from diffcompress.training.log import MetricsLog
from diffcompress.training.micro import backward
from diffcompress.training.optim import learning_rate
from diffcompress.training.state import Checkpoints, TrainingState

# Guard rails: this many skipped steps among the last WINDOW call for a rollback; so many rollbacks end the run.
MOST_SKIPPED, WINDOW, MOST_ROLLBACKS = 5, 20, 6


@dataclass
class Job:
    """What stays the same over the stages of a run. `trainee` is wrapped for the process group, if there is one."""

    recipe: Recipe
    teacher: LoadedPipeline
    trainee: nn.Module
    state: TrainingState
    targets: Targets
    runtime: Runtime
    progress: Progress
    preview: Callable[[int], None]


def run_stage(job: Job, index: int, folder: Path) -> None:
    """Train stage `index` in `folder`, from its last checkpoint if there is one, until its `final` checkpoint is there.

    Raises RunStopped or RunInterrupted after saving; DiffCompressError when training keeps producing non-finite values.
    """
    recipe, stage, state = job.recipe, job.recipe.stages[index], job.state
    checkpoints = Checkpoints(folder)
    if checkpoints.latest is not None:
        state.load(checkpoints.latest)
        if job.runtime.is_main:
            checkpoints.mend(job.progress.warn)
    elif job.runtime.is_main:
        state.counters.seconds = 0.0
        checkpoints.save(state)
    job.runtime.wait()
    last = sum(s.num_steps for s in recipe.stages[: index + 1])
    if checkpoints.final.is_dir():
        if state.counters.step >= last:
            return
        if job.runtime.is_main:  # it was given more steps
            checkpoints.reopen()
    main, warn = job.runtime.is_main, job.progress.warn
    log = MetricsLog(folder / "metrics.jsonl", state.counters.step, active=main, warn=warn)
    recent: deque[bool] = deque(maxlen=WINDOW)
    resumed, before, saved = time.monotonic(), state.counters.seconds, time.monotonic()

    while state.counters.step < last:
        step = state.counters.step
        try:
            terms = update(job, stage, step, job.targets.batch(step))
        except RunStopped:
            # Asked to stop while the next pool of targets was being made: the step has not begun.
            if job.runtime.is_main:
                checkpoints.save(state)
            raise
        state.counters.seconds = before + time.monotonic() - resumed
        recent.append(terms is None)
        if terms is None:
            state.counters.skipped += 1
            if sum(recent) >= MOST_SKIPPED:
                _roll_back(job, checkpoints)
                log = MetricsLog(log.path, state.counters.step, active=main, warn=warn)
                recent.clear()
                continue
        elif step % recipe.training.log_every_steps == 0 or step + 1 == last:
            # Means over all processes: what one process with the whole batch would log.
            row = {name: round(float(job.runtime.mean(value)), 7) for name, value in terms.items()}
            log.write({"step": step, "stage": stage.name, **row, "seconds": round(state.counters.seconds, 3)})
            job.progress.update(stage.name, step + 1 - (last - stage.num_steps), stage.num_steps, **row)
        state.counters.step += 1
        if state.counters.step % recipe.training.preview_every_steps == 0 and job.runtime.is_main:
            job.preview(state.counters.step)
        stopping = job.runtime.should_stop()
        if stopping or (job.runtime.is_main and time.monotonic() - saved > recipe.training.checkpoint_every_seconds):
            if job.runtime.is_main:
                checkpoints.save(state)
            saved = time.monotonic()
        if stopping:
            job.runtime.wait()
            job.runtime.stop.raise_if_set()
    if job.runtime.is_main:
        checkpoints.finish(state)
    job.runtime.wait()


def update(job: Job, stage: StageSection, step: int, batch: Batch) -> Mapping[str, Tensor] | None:
    """One optimizer step; None when it was skipped because a loss or gradient was not finite."""
    state, section = job.state, job.recipe.training
    total, terms = backward(
        job.trainee,
        job.teacher,
        batch,
        stage,
        job.runtime,
        job.runtime.mean,
        section.micro_batch_size or len(batch.noisy),
    )
    norm = torch.nn.utils.clip_grad_norm_(state.optimizer.parameters, section.max_grad_norm)
    finite = bool(torch.isfinite(job.runtime.mean(total.detach() + norm)))
    rate = learning_rate(section, step, job.recipe.num_steps) * state.counters.learning_rate_scale
    if finite:
        state.optimizer.step(rate)
    state.optimizer.zero_grad()
    if not finite:
        return None
    state.ema.update(state.model, step)
    return {**terms, "grad_norm": norm, "learning_rate": torch.tensor(rate, device=norm.device)}


def _roll_back(job: Job, checkpoints: Checkpoints) -> None:
    """Back to the last checkpoint with half the learning rate, remembered on disk."""
    counters = job.state.counters
    if counters.rollbacks >= MOST_ROLLBACKS or checkpoints.latest is None:
        raise DiffCompressError(
            f"training diverged: non-finite losses or gradients at step {counters.step}, "
            f"after {counters.rollbacks} rollbacks",
            "lower training.learning_rate in the recipe, or check the teacher",
        )
    job.runtime.wait()
    job.state.load(checkpoints.latest)
    job.state.counters.skipped = counters.skipped
    job.state.counters.rollbacks = counters.rollbacks + 1
    job.state.counters.learning_rate_scale = counters.learning_rate_scale / 2
    job.state.counters.seconds = counters.seconds
    job.runtime.wait()
    if job.runtime.is_main:
        checkpoints.save(job.state)
    job.runtime.wait()
    job.progress.warn(
        f"step {counters.step}: repeated non-finite values; "
        f"back to step {job.state.counters.step} with half the learning rate"
    )
