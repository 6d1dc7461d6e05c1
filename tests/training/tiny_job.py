"""A training job on a tiny real teacher, in milliseconds a step."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from diffusers import ModelMixin

from diffcompress.bank import bank as banks
from diffcompress.bank.targets import Batch, Targets
from diffcompress.jobs.students import initial_student, ranked
from diffcompress.pipeline.load import LoadedPipeline
from diffcompress.recipe import (
    BankSection,
    LossWeights,
    Recipe,
    StageSection,
    StudentSection,
    TargetsSection,
    TrainingSection,
)
from diffcompress.runtime import Progress, Runtime
from diffcompress.student.plan import plan
from diffcompress.training.ema import Ema
from diffcompress.training.objective import Trainee, make_adapters
from diffcompress.training.optim import Optimizer
from diffcompress.training.stage import Job
from diffcompress.training.state import TrainingState

# A start that is far from its end: what changes is seen in a few steps.
STUDENT = StudentSection(refit=False)


@dataclass(frozen=True)
class World:
    """What jobs share: a teacher, its bank, and the student of some size that they start with."""

    teacher: LoadedPipeline
    runtime: Runtime
    bank: banks.Bank
    ratio: float

    @cached_property
    def start(self) -> ModelMixin:
        shape = plan(self.teacher.family, self.teacher.config, ratio=self.ratio)
        recipe = Recipe(student=STUDENT)
        scores = ranked(self.teacher, recipe, self.bank, self.runtime, Progress())
        return initial_student(self.teacher, shape, recipe, self.bank, scores=scores)


@dataclass
class TinyJob(Job):
    trainee: Trainee
    targets: Poisoned


class Poisoned(Targets):
    """Targets whose predictions are not finite the first `times` times that one of `steps` is asked for."""

    steps: frozenset[int] = frozenset()
    times = 0

    def batch(self, step: int) -> Batch:
        batch = super().batch(step)
        if step in self.steps and self.times > 0:
            self.times -= 1
            return replace(batch, prediction=batch.prediction * float("nan"))
        return batch


def world(teacher: LoadedPipeline, runtime: Runtime, folder: Path, ratio: float) -> World:
    section = BankSection(num_samples=64, sampler_steps=4)
    return World(teacher, runtime, banks.fill(folder, teacher, section, 0, None, runtime, Progress()), ratio)


def job(
    world: World,
    folder: Path,
    steps: int = 20,
    weights: Mapping[str, float] | None = None,
    stages: tuple[StageSection, ...] | None = None,
    **training: Any,
) -> TinyJob:
    """One stage of `weights` (PLACE by default), or the `stages` given."""
    values = {"batch_size": 8, "warmup_steps": 2, "log_every_steps": 1, "preview_every_steps": 10**6} | training
    one = StageSection(name="only", num_steps=steps, weights=LossWeights(**(weights or {"place": 1.0})))
    recipe = Recipe(
        stages=stages or (one,),
        targets=TargetsSection(reuse=4, pool_size=64),
        training=TrainingSection(**values),
        student=STUDENT,
    )
    teacher, student = world.teacher, copy.deepcopy(world.start)
    adapters = make_adapters(student, teacher, 0) if weights and "feature_kd" in weights else None
    trainee = Trainee(student, teacher.family, adapters).train()
    state = TrainingState(trainee, Ema(trainee, 5), Optimizer(trainee, recipe.training))
    targets = Poisoned(
        folder / "targets",
        teacher,
        world.bank,
        recipe.targets,
        seed=0,
        batch_size=8,
        num_steps=recipe.num_steps,
        runtime=world.runtime,
        progress=Progress(),
    )
    return TinyJob(recipe, teacher, trainee, state, targets, world.runtime, Progress(), lambda step: None)


def rows(folder: Path) -> list[dict[str, Any]]:
    """What was logged in a stage's folder."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
