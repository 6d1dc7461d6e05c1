"""Students as models: before training, with their averaged weights, as pipelines of their own."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from diffusers import ModelMixin
from torch import Tensor, nn, ones_like, zeros_like

from diffcompress.bank import bank as banks
from diffcompress.bank.targets import TAYLOR_BATCHES, refit_batch, taylor_batches
from diffcompress.errors import GradientError
from diffcompress.families.base import Family
from diffcompress.families.unet import OUTPUT_LAYER
from diffcompress.pipeline.conditions import as_dtype
from diffcompress.pipeline.load import LoadedPipeline, state_fingerprint
from diffcompress.pipeline.placing import Anew
from diffcompress.pipeline.precision import cast
from diffcompress.pipeline.predicting import in_terms_of, predicting
from diffcompress.recipe import Recipe
from diffcompress.runtime import Progress, Runtime
from diffcompress.sources.weights import open_state
from diffcompress.student.inherit import pick, start_student
from diffcompress.student.refit import Conversion, refit
from diffcompress.student.scores import AxisScores, magnitude_scores, rows_held, taylor_scores
from diffcompress.student.student_plan import StudentPlan

# Samples that layers are refitted on: fewer at once would not be of all noise levels.
REFIT_SAMPLES, FEWEST_REFIT_SAMPLES = 128, 16
# Of the channels of each of the teacher's tensors.
Scores = Mapping[str, AxisScores]


def initial_student(
    teacher: LoadedPipeline,
    student_plan: StudentPlan,
    recipe: Recipe,
    bank: banks.Bank,
    *,
    scores: Scores | None = None,
    refitted: bool = True,
    progress: Progress | None = None,
) -> ModelMixin:
    """The student before training: inherited from the teacher or random, as the recipe says; on the CPU.

    scores: of the teacher's channels, as `ranked` gives them; None: by magnitude. Without `refitted` it is not
    refitted, whatever the recipe says: for a student whose weights are about to be replaced.
    """
    section = recipe.student
    stored = open_state(teacher.reference)
    state = stored if teacher.placed is None else Anew(stored)
    student = start_student(teacher.family, student_plan, section, state, scores=scores, seed=recipe.seed)
    if refitted and section.start == "inherit" and section.refit and teacher.family.kind == "unet":
        rules = student_plan.rules(teacher.family)
        kept = pick(rules, magnitude_scores(state) if scores is None else scores)
        _refit(student, teacher, student_plan, kept, recipe, bank, progress or Progress())
    return student


def ranked(
    teacher: LoadedPipeline, recipe: Recipe, bank: banks.Bank, runtime: Runtime, progress: Progress
) -> Scores | None:
    """How important the teacher's channels are by their gradients, of which each process takes a part; None where the
    recipe asks for no such, and, told, where these are not finite or its weights not in memory."""
    if recipe.student.start != "inherit" or recipe.student.importance != "taylor":
        return None
    denoiser: Any = teacher.denoiser
    if teacher.placed is not None:
        progress.warn(
            f"the channels of '{teacher.reference.id}' are ranked by magnitude: for gradients memory would "
            "have to hold all its weights"
        )
        return None
    held = rows_held(denoiser, teacher.predict, next(taylor_batches(teacher, bank, recipe.seed)))
    fitting = replace(bank, batch_size=min(bank.batch_size, held))
    try:
        own = range(runtime.index, TAYLOR_BATCHES, runtime.count)
        batches = taylor_batches(teacher, fitting, recipe.seed, own)
        return taylor_scores(denoiser, teacher.predict, batches, total=runtime.total)
    except GradientError as error:
        progress.warn(f"{error.message}; they are ranked by magnitude")
        return None


def _refit(
    student: nn.Module,
    teacher: LoadedPipeline,
    student_plan: StudentPlan,
    kept: Mapping[str, Tensor],
    recipe: Recipe,
    bank: banks.Bank,
    progress: Progress,
) -> None:
    number = min(REFIT_SAMPLES, bank.batch_size)
    if number < FEWEST_REFIT_SAMPLES:
        progress.note(f"inherited layers are not refitted: memory holds {number} samples at once, too few")
        return
    noisy, timestep, conditioning = refit_batch(teacher, bank, recipe.seed, number)

    def call(model: Any) -> Tensor:
        return teacher.family.predict(model, noisy.to(model.dtype), timestep, as_dtype(conditioning, model.dtype))

    own = predicting(teacher, student_plan.prediction_type).noise
    conversion = None
    if own.prediction_type != teacher.noise.prediction_type:
        offset, whole = (own.converted(f(noisy), noisy, timestep, teacher.noise) for f in (zeros_like, ones_like))
        conversion = Conversion(OUTPUT_LAYER, whole - offset, offset)
    rules = student_plan.rules(teacher.family)
    layers = refit(student.to(teacher.device), teacher.denoiser, rules, kept, call, conversion)
    student.cpu()
    progress.note(f"{layers} inherited layers refitted to their teacher's outputs on {number} samples")


def copy_student(student_plan: StudentPlan, model: ModelMixin) -> ModelMixin:
    """A trainable student with the weights of `model`, on its device."""
    copy = type(model).from_config(student_plan.config)  # type: ignore[attr-defined]  # of ConfigMixin, its other base
    copy.load_state_dict(model.state_dict())
    return copy.to(next(model.parameters()).device)


def averaged_student(student_plan: StudentPlan, like: ModelMixin, averages: Mapping[str, Tensor]) -> ModelMixin:
    """The student with its EMA weights, which `averages` of a trainee hold, ready for sampling."""
    student = copy_student(student_plan, like)
    prefix = "student."
    student.load_state_dict({k.removeprefix(prefix): v for k, v in averages.items() if k.startswith(prefix)})
    return student.eval().requires_grad_(False)


def as_student(teacher: LoadedPipeline, student_plan: StudentPlan, denoiser: ModelMixin) -> LoadedPipeline:
    """A student denoiser as a pipeline of its own, sampled as the teacher is."""
    around = predicting(teacher, student_plan.prediction_type)
    reference = replace(around.reference, config=dict(student_plan.config))
    denoiser = denoiser.eval().requires_grad_(False)
    fingerprint = state_fingerprint(denoiser)
    if around is not teacher:  # equal tensors that mean something else
        fingerprint = hashlib.sha256(f"{fingerprint} {student_plan.prediction_type}".encode()).hexdigest()
    if teacher.precision != torch.float32:
        denoiser = cast(copy.deepcopy(denoiser), teacher.precision)
    return replace(around, reference=reference, denoiser=denoiser, fingerprint=fingerprint, placed=None, parted=False)


def taught_family(teacher: LoadedPipeline, student_plan: StudentPlan) -> Family:
    """The student's family, whose predictions are told in its teacher's terms, in which they are compared."""
    return in_terms_of(predicting(teacher, student_plan.prediction_type), teacher.noise).family
