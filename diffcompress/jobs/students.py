"""Students as models: before training, with their averaged weights, as pipelines of their own."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from diffcompress.data import bank as banks
from diffcompress.data.targets import taylor_batches
from diffcompress.recipe import Recipe
from diffcompress.student.inherit import start_student
from diffcompress.student.plan import StudentPlan
from diffcompress.student.scores import taylor_scores
from diffcompress.teacher.load import LoadedPipeline, laid_out, state_fingerprint
from diffcompress.teacher.weights import open_state
from diffcompress.training.state import TrainingState


def initial_student(
    teacher: LoadedPipeline, student_plan: StudentPlan, recipe: Recipe, bank: banks.Bank, *, ranked: bool = True
) -> nn.Module:
    """The student before training: inherited from the teacher or random, as the recipe says; on the CPU.

    Without `ranked` the Taylor pass is left out: for a student whose weights are about to be replaced.
    """
    scores = None
    if ranked and recipe.student.start == "inherit" and recipe.student.importance == "taylor":
        scores = taylor_scores(teacher.denoiser, teacher.predict, taylor_batches(teacher, bank, recipe.seed))
    state = open_state(teacher.reference)
    return start_student(teacher.family, student_plan, recipe.student, state, scores=scores, seed=recipe.seed)


def copy_student(student_plan: StudentPlan, model: nn.Module) -> nn.Module:
    """A trainable student with the weights of `model`, on its device."""
    copy = type(model).from_config(student_plan.config)  # type: ignore[attr-defined]
    copy.load_state_dict(model.state_dict())
    return copy.to(next(model.parameters()).device)


def averaged_student(student_plan: StudentPlan, like: nn.Module, state: TrainingState) -> nn.Module:
    """The student with its EMA weights, ready for sampling."""
    student = copy_student(student_plan, like)
    prefix = "student."
    student.load_state_dict({k.removeprefix(prefix): v for k, v in state.ema.tensors.items() if k.startswith(prefix)})
    return student.eval().requires_grad_(False)


def as_student(teacher: LoadedPipeline, student_plan: StudentPlan, denoiser: nn.Module) -> LoadedPipeline:
    """A student denoiser as a pipeline of its own, sampled as the teacher is."""
    reference = replace(teacher.reference, config=dict(student_plan.config))
    denoiser = laid_out(denoiser, teacher.family).eval().requires_grad_(False)
    return replace(teacher, reference=reference, denoiser=denoiser, fingerprint=state_fingerprint(denoiser))
