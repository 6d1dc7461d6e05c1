"""The one training loop, run once per stage: status, save, done?, gradient, update."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from diffcompress.bank.batch import Batch
from diffcompress.bank.targets import Targets
from diffcompress.errors import DiffCompressError, RunStopped
from diffcompress.pipeline.load import LoadedPipeline
from diffcompress.recipe import Recipe, StageSection
from diffcompress.records import layout
from diffcompress.runtime import Progress, Runtime
from diffcompress.training.guard import Guard
from diffcompress.training.log import MetricsLog
from diffcompress.training.micro import backward
from diffcompress.training.optim import learning_rate
from diffcompress.training.state import Checkpoints, TrainingState

# Rollbacks that end a run.
MOST_ROLLBACKS = 6


@dataclass
class Job:
    """What stays the same over the stages of a run. `trainee` is wrapped for the process group, if there is one;
    preview: a look at the student after so many steps, which all processes call;
    rate_share: of the recipe's learning rate, for a student of this size."""

    recipe: Recipe
    teacher: LoadedPipeline
    trainee: nn.Module
    state: TrainingState
    targets: Targets
    runtime: Runtime
    progress: Progress
    preview: Callable[[int], None]
    rate_share: float = 1.0


def run_stage(job: Job, index: int, folder: Path) -> None:
    """Train stage `index` in `folder`, from its last checkpoint if there is one, until its `final` checkpoint is there.

    Raises RunStopped or RunInterrupted after saving; DiffCompressError when training keeps producing non-finite values.
    """
    recipe, stage, state = job.recipe, job.recipe.stages[index], job.state
    main, warn = job.runtime.is_main, job.progress.warn
    checkpoints = Checkpoints(folder, writes=main)
    latest = checkpoints.latest
    job.runtime.wait()  # before any process goes on to write one
    if latest is not None:
        state.load(latest)
        checkpoints.mend(warn)
    else:
        state.counters.seconds = 0.0
        checkpoints.save(state)
    job.runtime.wait()
    last = sum(s.num_steps for s in recipe.stages[: index + 1])
    if checkpoints.final.is_dir():
        if state.counters.step >= last:
            return
        job.runtime.wait()
        checkpoints.reopen()  # it was given more steps
    log = MetricsLog(folder / layout.TRAINING_LOG, state.counters.step, active=main, warn=warn)
    guard = Guard()
    resumed, before, saved = time.monotonic(), state.counters.seconds, time.monotonic()

    while state.counters.step < last:
        step = state.counters.step
        try:
            terms, finite = update(job, stage, step, job.targets.batch(step))
        except RunStopped:
            # Asked to stop while the next pool of targets was being made: the step has not begun.
            guard.settle(state.counters)
            # A process that stops alone, as before a full disk, has nobody to gather the others' part of it with.
            if state.sharding is None or job.runtime.stop.signal is not None:
                checkpoints.save(state)
            raise
        guard.see(finite)
        state.counters.step += 1
        state.counters.seconds = before + time.monotonic() - resumed
        stopping = job.runtime.should_stop()
        due = step % recipe.training.log_every_steps == 0 or step + 1 == last
        if due or stopping:  # here the host waits for the device, and nowhere else
            fine = guard.settle(state.counters)
            if guard.diverging:
                _roll_back(job, checkpoints)
                log, guard = MetricsLog(log.path, state.counters.step, active=main, warn=warn), Guard()
                continue
            if due and fine:
                row = _read(terms, job.runtime) | {"learning_rate": round(_rate(job, step), 7)}
                log.write({"step": step, "stage": stage.name, **row, "seconds": round(state.counters.seconds, 3)})
                job.runtime.accelerator.log(row, step=step)
                job.progress.update(stage.name, step + 1 - (last - stage.num_steps), stage.num_steps, **row)
        if state.counters.step % recipe.training.preview_every_steps == 0:
            job.preview(state.counters.step)
        late = time.monotonic() - saved > recipe.training.checkpoint_every_seconds
        if stopping or (due and job.runtime.anywhere(late)):
            checkpoints.save(state)
            saved = time.monotonic()
        if stopping:
            job.runtime.wait()
            job.runtime.stop.raise_if_set()
    checkpoints.finish(state)
    job.runtime.wait()


def update(job: Job, stage: StageSection, step: int, batch: Batch) -> tuple[Mapping[str, Tensor], Tensor]:
    """One optimizer step: its terms for the log, and whether loss and gradients were finite (bool, 0-d).

    Where they were not, weights and moments stay as they are. The host never waits for the device to know.
    """
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
    norm = torch.nn.utils.clip_grad_norm_(state.optimizer.parameters, section.max_grad_norm, foreach=True)
    finite = torch.isfinite(job.runtime.mean(total.detach() + norm))
    state.optimizer.step(_rate(job, step), finite)
    state.optimizer.zero_grad()
    state.ema.update(step)
    return {**terms, "grad_norm": norm}, finite


def _rate(job: Job, step: int) -> float:
    scheduled = learning_rate(job.recipe.training, step, job.recipe.num_steps)
    return scheduled * job.rate_share * job.state.counters.learning_rate_scale


def _read(terms: Mapping[str, Tensor], runtime: Runtime) -> dict[str, float]:
    """Means over all processes: what one process with the whole batch would log."""
    values = runtime.mean(torch.stack(list(terms.values()))).tolist()
    return {name: round(value, 7) for name, value in zip(terms, values, strict=True)}


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
    checkpoints.save(job.state)
    job.runtime.wait()
    job.progress.warn(
        f"step {counters.step}: repeated non-finite values; "
        f"back to step {job.state.counters.step} with half the learning rate"
    )
