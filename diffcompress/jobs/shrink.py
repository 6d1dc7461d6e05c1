"""`shrink`: the whole story, one call for each step: plan, bank, inherit, train, evaluate, export, report."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from diffcompress import recipe as recipes
from diffcompress import runtime as runtimes
from diffcompress.data import bank as banks
from diffcompress.data.targets import Targets
from diffcompress.export.report import write_report
from diffcompress.export.sheets import write_sheet
from diffcompress.recipe import Recipe
from diffcompress.run_folder import RunFolder, discard, read_json, write_json, write_text
from diffcompress.runtime import Progress, Runtime
from diffcompress.sampling import sample
from diffcompress.student.plan import StudentPlan, plan
from diffcompress.teacher.load import LoadedPipeline, describe, load
from diffcompress.teacher.reference import resolve
from diffcompress.training import budget
from diffcompress.training.ema import Ema
from diffcompress.training.objective import Trainee, make_adapters
from diffcompress.training.optim import make_optimizer
from diffcompress.training.stage import Job, run_stage
from diffcompress.training.state import Checkpoints, TrainingState

PREVIEW_SAMPLES = 16


def shrink(
    teacher: str,
    *,
    ratio: float | None = None,
    params: int | None = None,
    size: int | None = None,
    output: str | None = None,
    overwrite: bool = False,
    data: str | None = None,
    method: str = "lift-place",
    max_time: float | None = None,
    recipe: str = "default",
    overrides: tuple[str, ...] = (),
    seed: int = 0,
    device: str | None = None,
    dtype: str | None = None,
    license: str | None = None,
    scheduler: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Compress `teacher` and return what `shrink --json` prints. The same call again resumes.

    Exactly one of ratio (0 < ratio < 1), params (a count) and size (bytes of the exported denoiser) sets the target;
    max_time is in seconds of training. Raises DiffCompressError subclasses, each with its exit status.
    """
    reference = resolve(teacher, scheduler)
    family, _ = describe(reference)
    asked = recipes.load(recipe, tuple(overrides), method, seed=seed)
    student_plan = plan(family, reference.config, ratio=ratio, params=params, size=size, dtype=dtype, section=asked.student)
    run = RunFolder(output or f"./{reference.name}-{student_plan.requested_ratio:.4g}")
    runtime = runtimes.start(device)
    loaded = load(reference, runtime.device)
    identity = {
        "teacher": reference.id,
        "fingerprint": loaded.fingerprint,
        "target": {"ratio": ratio, "params": params, "size": size},
        "method": method,
        "data": data,
        "dtype": dtype,
        "license": license,
        "recipe_name": recipe,
        "recipe": asked.model_dump(mode="json"),
    }
    runtime.stop.install()
    claim = run.claim(identity, overwrite=overwrite) if runtime.is_main else contextlib.nullcontext()
    try:
        with claim:
            runtime.wait()
            context = _Context(run, loaded, student_plan, runtime, progress or Progress())
            for note in (*reference.notes, *student_plan.notes):
                context.progress.note(note)
            _run(context, asked, data, max_time)
            runtime.wait()
            return read_json(run.report_json)
    finally:
        runtime.stop.restore()


@dataclass(frozen=True)
class _Context:
    run: RunFolder
    teacher: LoadedPipeline
    plan: StudentPlan
    runtime: Runtime
    progress: Progress

    def write_json(self, path: Any, value: Any) -> None:
        if self.runtime.is_main:
            write_json(path, value)

    def with_denoiser(self, denoiser: nn.Module) -> LoadedPipeline:
        """The student as a pipeline of its own, sampled as the teacher is."""
        reference = replace(self.teacher.reference, config=dict(self.plan.config))
        return replace(self.teacher, reference=reference, denoiser=denoiser.eval(), fingerprint="")

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.add_seconds(name, time.monotonic() - started)

    def add_seconds(self, name: str, seconds: float, *, total: bool = False) -> None:
        """Seconds of a step, added up over interrupted runs unless `seconds` is already the total."""
        if self.runtime.is_main:
            timings = read_json(self.run.timings) if self.run.timings.exists() else {}
            write_json(self.run.timings, timings | {name: round(seconds + (0 if total else timings.get(name, 0)), 2)})


def _run(context: _Context, asked: Recipe, data: str | None, max_time: float | None) -> None:
    run, runtime = context.run, context.runtime
    context.write_json(run.plan, context.plan.to_json())
    context.write_json(run.environment, runtimes.environment(runtime))
    with context.timed("bank"):
        bank = banks.fill(run.bank, context.teacher, asked.bank, asked.seed, data, runtime, context.progress)
    with context.timed("student-init"):
        start = _start(context, asked, bank)
    recipe, trained = _train(context, asked, start, bank, max_time)
    if runtime.is_main:
        _conclude(context, recipe, start, trained, bank)


def _train(
    context: _Context, asked: Recipe, start: nn.Module, bank: banks.Bank, max_time: float | None
) -> tuple[Recipe, nn.Module]:
    """All stages, from wherever they stand; the resolved recipe and the student with its EMA weights."""
    student = _copy(context, start)
    uses_features = any(stage.weights.feature_kd > 0 for stage in asked.stages)
    adapters = make_adapters(student, context.teacher) if uses_features else None
    trainee = Trainee(student, context.teacher.family, adapters).to(context.runtime.device).train()
    recipe = _resolved(context, asked, trainee, bank, max_time)
    job = _job(context, recipe, trainee, bank)
    for index, stage in enumerate(recipe.stages):
        folder = context.run.stage(index, stage.name)
        run_stage(job, index, folder)
        context.add_seconds(folder.name, job.state.counters.seconds, total=True)
    student = _copy(context, start)
    student.load_state_dict({k[8:]: v for k, v in job.state.ema.tensors.items() if k.startswith("student.")})
    return recipe, student.eval().requires_grad_(False)


def _job(context: _Context, recipe: Recipe, trainee: Trainee, bank: banks.Bank) -> Job:
    optimizer = make_optimizer(trainee, recipe.training)
    state = TrainingState(trainee, Ema(trainee, recipe.training.ema_half_life * recipe.num_steps), optimizer)
    targets = Targets(
        context.run.targets,
        context.teacher,
        bank,
        recipe.targets,
        seed=recipe.seed,
        batch_size=recipe.training.batch_size,
        num_steps=recipe.num_steps,
        runtime=context.runtime,
        progress=context.progress,
    )

    def preview(step: int) -> None:
        averaged = _copy(context, trainee.student)
        averaged.load_state_dict({k[8:]: v for k, v in state.ema.tensors.items() if k.startswith("student.")})
        pipeline = context.with_denoiser(averaged)
        images = sample(pipeline, range(PREVIEW_SAMPLES), seed=recipe.seed, num_steps=recipe.evaluation.sampler_steps)
        write_sheet(images, context.run.samples / f"preview-{step:06d}.png")

    wrapped = context.runtime.accelerator.prepare(trainee)
    return Job(recipe, context.teacher, wrapped, state, targets, context.runtime, context.progress, preview)


def _resolved(
    context: _Context, asked: Recipe, trainee: Trainee, bank: banks.Bank, max_time: float | None
) -> Recipe:
    """The recipe of this run with its final step counts: what recipe.yaml says once it is written."""
    run, runtime = context.run, context.runtime
    runtime.wait()
    if run.recipe.exists():
        recipe = recipes.parse(run.recipe.read_text(encoding="utf-8"), str(run.recipe))
        granted = read_json(run.budget)["max_time"] if run.budget.exists() else None
        if max_time is None or granted is None or max_time <= granted:
            return recipe
        last = Checkpoints(run.stage(len(recipe.stages) - 1, recipe.stages[-1].name))
        if not last.final.is_dir():
            context.progress.note(f"the step count was fixed for {granted:g} s and stays; ask for more time once the run is finished")
            return recipe
        recipe = budget.extend(recipe, max_time, read_json(run.timings))
        runtime.wait()
        if runtime.is_main:
            last.reopen()
            for path in (run.metrics, run.proof, run.report_json):
                discard(path)
    elif max_time is None:
        recipe = asked
    else:
        job = _job(context, asked, trainee, bank)
        recipe = budget.fit_steps(job, max_time, run.targets)
        context.progress.note(f"{recipe.num_steps} steps fit into {max_time:g} s of training")
    if runtime.is_main:
        if max_time is not None:
            write_json(run.budget, {"max_time": max_time})
        write_text(run.recipe, recipe.to_yaml())
    runtime.wait()
    return recipe


def _copy(context: _Context, model: nn.Module) -> nn.Module:
    """A fresh trainable student with the weights of `model`, built from its config (hooks and wrappers stay behind)."""
    copy = type(model).from_config(context.plan.config)  # type: ignore[attr-defined]
    copy.load_state_dict(model.state_dict())
    return copy.to(context.runtime.device)
