"""Teachers of real size with random weights, and the step that trains their students, as the product does it."""

from __future__ import annotations

import itertools
import json
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import diffcompress
from benchmarks import runs
from benchmarks.launches import Launches
from benchmarks.measuring import Session
from diffcompress import memory
from diffcompress import recipe as recipes
from diffcompress.bank.bank import Bank
from diffcompress.errors import DoesNotFitError
from diffcompress.families import registry
from diffcompress.families.base import Family, complete
from diffcompress.jobs.trainee import trainee, training_job
from diffcompress.pipeline.conditions import Conditions
from diffcompress.pipeline.load import LoadedPipeline, load
from diffcompress.pipeline.sampling import automatic_batch_size
from diffcompress.records.run_folder import RunFolder
from diffcompress.runtime import computes_bfloat16, dtype_name, free_memory, synchronise
from diffcompress.sources.resolve import resolve
from diffcompress.student import costs
from diffcompress.student.plan import plan
from diffcompress.student.size import build
from diffcompress.student.student_plan import StudentPlan
from diffcompress.training import micro
from diffcompress.training.stage import Job, update

ROOT = Path(__file__).parents[1]
STUDENTS = (("sd15", 0.25), ("dit-xl-2-256", 0.05), ("sd3-medium", 0.02), ("sdxl-base", 0.25))
# Clean samples of the bank and stored calls of each; targets go round among them.
SAMPLES, CALLS = 8, 32
MOST_ROWS = 64
TINY_RATIOS = [share / 100 for share in range(50, 20, -1)]
COMPILING = 120.0  # seconds that must be left
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
DIFFUSION = {"_class_name": "DDIMScheduler", "clip_sample": False, "beta_schedule": "scaled_linear"}


@dataclass
class Subject:
    """A teacher of random weights, and the student that is trained from it."""

    session: Session
    name: str
    ratio: float

    def __post_init__(self) -> None:
        stored = json.loads((ROOT / "tests" / "teachers" / f"{self.name}.json").read_text(encoding="utf-8"))
        self.family: Family = registry.find(stored["_class_name"])
        self.config = complete(self.family.class_name, self.family.tiny_config() if self.session.tiny else stored)
        # Stored calls suffice, however often each is used.
        self.overrides = ["student.start=random", "targets.reuse=1000000"]
        self.overrides += ["training.batch_size=4"] if self.session.tiny else []
        self.recipe = recipes.load(self.family.recipe, tuple(self.overrides))
        if self.session.tiny:
            self.ratio = next(ratio for ratio in TINY_RATIOS if self._fits(ratio))

    def _fits(self, ratio: float) -> bool:
        try:
            plan(self.family, self.config, ratio=ratio, section=self.recipe.student)
        except DoesNotFitError:
            return False
        return True

    @cached_property
    def folder(self) -> Path:
        """A denoiser in half precision; no weight is zero, so that no gradient vanishes."""
        place = self.session.work / self.name
        torch.manual_seed(0)
        denoiser: Any = build(self.family, self.config, self.session.device)
        with torch.no_grad():
            for weight in denoiser.parameters():
                if weight.dim() > 1:
                    weight.normal_(std=0.02)
        nn.Module.to(denoiser, torch.float16).save_pretrained(place)
        scheduler = FLOW if self.family.recipe == "mmdit" else DIFFUSION
        (place / "scheduler_config.json").write_text(json.dumps(scheduler), encoding="utf-8")
        return place

    @cached_property
    def teacher(self) -> LoadedPipeline:
        """As the product loads it, precision chosen and checked; with random conditions where it takes text."""
        device, folder = self.session.device, str(self.folder)
        started = time.monotonic()
        found = load(resolve(folder), device)
        if not any(row["part"] == self.name for row in self.session.rows):
            spent, chosen = time.monotonic() - started, dtype_name(found.precision)
            self.session.tell(self.name, "teacher read and checked", spent, "s", computes_in=chosen)
        if found.precision != torch.bfloat16 and computes_bfloat16(device):  # random weights may round badly
            found = load(resolve(folder), device, precision=torch.bfloat16)
        if not found.takes_text:
            return found
        given = self.family.example_inputs(self.config, SAMPLES + 1)
        del given["noisy"], given["timestep"]
        table = {n: _random(v).bfloat16() if v.is_floating_point() else v for n, v in given.items()}
        return replace(found, conditions=Conditions(table, SAMPLES, SAMPLES))

    @cached_property
    def plan(self) -> StudentPlan:
        teacher = self.teacher
        return plan(self.family, self.config, ratio=self.ratio, section=self.recipe.student, noise=teacher.noise)

    @cached_property
    def bank(self) -> Bank:
        """Stored calls of random numbers: a step takes as long whatever they say."""
        teacher, count, own = self.teacher, SAMPLES * CALLS, torch.Generator().manual_seed(0)
        noisy = torch.randn(count, *teacher.sample_shape, generator=own)
        timestep, index = teacher.noise.at(torch.rand(count, generator=own)), torch.arange(count) % SAMPLES
        prediction = torch.randn(count, *self.call(noisy[:1], timestep[:1])().shape[1:], generator=own)
        calls = {"noisy": noisy, "timestep": timestep, "prediction": prediction, "index": index}
        calls["condition"] = index % teacher.conditions.count
        clean = torch.randn(SAMPLES, *teacher.sample_shape, generator=own)
        return Bank(clean, calls["condition"][:SAMPLES], teacher.conditions, calls, "random", batch_size=SAMPLES)

    def call(self, noisy: Tensor, timestep: Tensor) -> Callable[[], Tensor]:
        """A call of the teacher, on tensors that are on its device already."""
        teacher, device = self.teacher, self.session.device
        index = torch.arange(len(noisy)) % teacher.conditions.count
        given = {name: value.to(device) for name, value in teacher.conditions.rows(index).items()}
        there = noisy.to(device), timestep.to(device)
        return torch.no_grad()(lambda: teacher.predict_all(*there, given))

    def job(self, batch_size: int | None = None) -> Job:
        """Ready for steps of the recipe's batch in parts that memory holds, or of `batch_size` in one."""
        device = self.session.device
        folder = RunFolder(self.session.work / f"{self.name}-run")
        run = runs.run_for(self.teacher, self.plan, self.recipe, folder, device=str(device))
        trained = trainee(run, build(self.family, self.plan.config, device))
        whole = batch_size or self.recipe.training.batch_size
        size = batch_size or micro.fit(trained, self.teacher, self.recipe.stages[-1], device).part(whole)
        training = self.recipe.training.model_copy(update={"batch_size": whole, "micro_batch_size": size})
        return training_job(run, self.recipe.model_copy(update={"training": training}), trained, self.bank)

    def forget(self) -> None:
        """What it holds of the device's memory."""
        for name in ("teacher", "plan", "bank"):
            self.__dict__.pop(name, None)


def teacher_call(subject: Subject) -> None:
    """Of the batch that the product chooses: of free memory what it takes; time, and share of the ceiling."""
    session, teacher = subject.session, subject.teacher
    free, chosen = free_memory(session.device), automatic_batch_size(teacher)
    taken = memory.peak(_call_of(subject, 2 if session.tiny else chosen), session.device)
    session.tell(subject.name, "teacher's call, memory", taken / 1e9, "GB", batch=chosen, of_free=taken / free)
    _tell_call(subject, "eager", min(chosen, MOST_ROWS))


def student_step(subject: Subject) -> None:
    """The product's own step: on a batch that is there, and fed; its launches and waits."""
    session, job = subject.session, subject.job()
    stage, count = job.recipe.stages[-1], itertools.count()
    step = partial(update, job, stage, 0, job.targets.batch(next(count)))
    there = _tell_step(subject, job, "its batch there", step)
    fed = _tell_step(subject, job, "fed", lambda: update(job, stage, 0, job.targets.batch(next(count))))
    alone = session.seconds(lambda: job.targets.batch(next(count)))
    hidden = 1 - min(1.0, max(0.0, fed - there) / alone)
    session.tell(subject.name, "batch made and copied, no step beside", 1000 * alone, "ms", hidden_by_steps=hidden)
    with Launches() as seen:
        step()
    session.tell(subject.name, "operations of a step", seen.total)
    session.tell(subject.name, "waits of the host in a step", waits_for_device(session, step))


def compiled(subject: Subject) -> None:
    """Teacher's call and step again, by torch.compile, where there is time left for it."""
    session, teacher, backend = subject.session, subject.teacher, "eager" if subject.session.tiny else "inductor"
    if session.left() < COMPILING and not session.tiny:
        session.tell(subject.name, "compiled: not begun, for want of time", session.left(), "s left")
        return
    teacher.denoiser.forward = torch.compile(teacher.denoiser.forward, backend=backend)  # type: ignore[method-assign]
    _tell_call(subject, "compiled", min(automatic_batch_size(teacher), MOST_ROWS))
    job = subject.job()
    step = partial(update, job, job.recipe.stages[-1], 0, job.targets.batch(0))
    job.trainee.forward = torch.compile(job.trainee.forward, backend=backend)  # type: ignore[method-assign]
    started = time.monotonic()
    step()
    session.tell(subject.name, "compiling the step", time.monotonic() - started, "s")
    _tell_step(subject, job, "compiled", step)
    torch.compiler.reset()


def _call_of(subject: Subject, rows: int) -> Callable[[], Tensor]:
    teacher = subject.teacher
    return subject.call(torch.randn(rows, *teacher.sample_shape), teacher.noise.at(torch.rand(rows)))


def _tell_call(subject: Subject, how: str, rows: int) -> None:
    session, rows = subject.session, 2 if subject.session.tiny else rows
    spent = session.seconds(_call_of(subject, rows), repeats=3)
    work = 2 * costs.count(subject.family, subject.config).macs * rows / 1e12
    of_ceiling = work / spent / session.most[dtype_name(subject.teacher.precision)]
    more = {"batch": rows, "of_ceiling": of_ceiling}
    session.tell(subject.name, f"teacher's call, {how}", 1000 * spent / rows, "ms a sample", **more)


def _tell_step(subject: Subject, job: Job, how: str, action: Callable[[], object]) -> float:
    session, training = subject.session, job.recipe.training
    mixed = training.precision == "bfloat16" and computes_bfloat16(session.device)
    work = 3 * 2 * costs.count(subject.family, subject.plan.config).macs * training.batch_size / 1e12
    spent = session.seconds(action)
    of_ceiling = work / spent / session.most["bfloat16" if mixed else "float32"]
    more = {"batch": training.batch_size, "micro": training.micro_batch_size, "of_ceiling": of_ceiling}
    session.tell(subject.name, f"step, {how}", 1000 * spent, "ms", **more)
    return spent


def planned_memory(subject: Subject) -> None:
    """Training on one sample at a time, against what `plan` says that it takes."""
    session = subject.session
    planned = diffcompress.plan(str(subject.folder / "config.json"), ratio=subject.ratio, overrides=subject.overrides)
    job, device = subject.job(1), session.device
    step = partial(update, job, job.recipe.stages[-1], 0, job.targets.batch(0))
    step()  # moments are there
    if device.type == "cuda":
        standing = torch.cuda.memory_allocated(device)
    else:
        kept = (*job.state.ema.tensors.values(), *job.state.optimizer.tensors().values())
        weights = (*subject.teacher.denoiser.parameters(), *job.state.model.parameters())
        standing = sum(value.nbytes for value in (*kept, *weights))
    taken = standing + memory.peak(step, device)
    more = {"plan": planned["peak_memory_bytes"] / 1e9, "card": planned["card"]}
    session.tell(subject.name, "memory of training, a sample at a time", taken / 1e9, "GB", **more)


def waits_for_device(session: Session, action: Callable[[], object]) -> int:
    """How often the host waits for the device: by torch's own mode; on a CPU, how often it asks a tensor for a value."""
    if session.device.type != "cuda":
        with Launches() as seen:
            action()
        return seen.names["_local_scalar_dense"] + seen.names["nonzero"]
    synchronise(session.device)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            action()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(one.message) for one in caught)


def _random(value: Tensor) -> Tensor:
    return torch.randn(value.shape, generator=torch.Generator().manual_seed(1))
