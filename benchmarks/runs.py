"""A run of the product from values: teacher, student, recipe and folder, whatever a benchmark wants them to be."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffcompress import runtime as runtimes
from diffcompress.jobs.request import Request
from diffcompress.jobs.run import Run
from diffcompress.pipeline.load import LoadedPipeline
from diffcompress.recipe import Recipe
from diffcompress.records.request import ShrinkOptions
from diffcompress.records.run_folder import RunFolder
from diffcompress.runtime import Progress
from diffcompress.student import costs
from diffcompress.student.plan import plan
from diffcompress.student.student_plan import StudentPlan


def run_for(
    teacher: LoadedPipeline, student_plan: StudentPlan, recipe: Recipe, folder: RunFolder, *, device: str = "cpu"
) -> Run:
    """A run in `folder` that trains `student_plan` by `recipe` on `device`, unclaimed; what several share lies where
    `folder` says."""
    asked = ShrinkOptions(
        teacher.reference.id,
        ratio=student_plan.requested_ratio,
        output=folder.path,
        shared=folder.shared,
        device=device,
    )
    request = Request(asked=asked, reference=teacher.reference, recipe_name="", recipe=recipe)
    return Run(request, folder, teacher, student_plan, None, runtimes.start(device), Progress())


def shaped(teacher: LoadedPipeline, ratio: float, recipe: Recipe, changes: Mapping[str, Any]) -> StudentPlan:
    """The plan's student, or one with other values in its config (any size: its parameters tell it)."""
    planned = plan(teacher.family, teacher.config, ratio=ratio, section=recipe.student, noise=teacher.noise)
    if not changes:
        return planned
    config = {**planned.config, **changes}
    params = costs.count(teacher.family, config).params
    return dataclasses.replace(planned, config=config, params=params, choice={}, notes=())


def folder_of(work: Path, teacher: str) -> Path:
    """Where what is made of `teacher`, a name or a path, lies in `work`."""
    return work / Path(teacher).name.replace(":", "-")


def last_row(log: Path) -> dict[str, Any]:
    """The last line of a stage's log."""
    return json.loads(log.read_text(encoding="utf-8").splitlines()[-1])
