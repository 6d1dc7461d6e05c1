"""All that steps are taken with: the student that learns, its optimizer, averages and targets, and a look at it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from diffusers import ModelMixin

from diffcompress.bank import targets
from diffcompress.bank.bank import Bank
from diffcompress.jobs.run import Run
from diffcompress.jobs.students import as_student, averaged_student, copy_student, taught_family
from diffcompress.pipeline.load import LoadedPipeline
from diffcompress.pipeline.sampling import sample
from diffcompress.recipe import Recipe
from diffcompress.report.sheets import write_sheet
from diffcompress.training.ema import Ema
from diffcompress.training.objective import Trainee, freeze_unused, make_adapters
from diffcompress.training.optim import Optimizer, rate_share
from diffcompress.training.sharding import Sharding
from diffcompress.training.stage import Job
from diffcompress.training.state import TrainingState

PREVIEW_SAMPLES = 16
# (step, student with its averaged weights as a pipeline): a look at it while it trains.
Look = Callable[[int, LoadedPipeline], None]


def trainee(run: Run, start: ModelMixin) -> Trainee:
    """A copy of the student `start`, ready for steps of the recipe: with adapters where a stage asks for them, and
    without gradients that nothing needs."""
    student, recipe = copy_student(run.plan, start), run.request.recipe
    uses_features = any(stage.weights.feature_kd > 0 for stage in recipe.stages)
    adapters = make_adapters(student, run.teacher, recipe.seed) if uses_features else None
    made = Trainee(student, taught_family(run.teacher, run.plan), adapters, precision=recipe.training.precision)
    made = made.to(run.runtime.device).train()
    freeze_unused(made, run.teacher.example_inputs())
    return made


def training_job(run: Run, recipe: Recipe, trainee: Trainee, bank: Bank, *, look: Look | None = None) -> Job:
    """All that the stages of `recipe` train with: targets from `bank`, optimizer and averages of `trainee`."""
    section = recipe.training
    index, count, device = run.runtime.index, run.runtime.count, run.runtime.device
    sharding = Sharding.of(trainee, index, count, device) if section.shard and count > 1 else None
    average = Ema(trainee, section.ema_half_life * recipe.num_steps, sharding)
    state = TrainingState(trainee, average, Optimizer(trainee, section, sharding), sharding)
    stored = targets.Targets(
        run.folder.targets,
        run.teacher,
        bank,
        recipe.targets,
        seed=recipe.seed,
        batch_size=section.batch_size,
        num_steps=recipe.num_steps,
        runtime=run.runtime,
        progress=run.progress,
        keep=run.folder.shared is not None,
        with_diffusion=any(stage.weights.diffusion > 0 for stage in recipe.stages),
        alone=run.teacher.parted,
    )
    look = look or partial(_draw_sheet, run, recipe)

    def preview(step: int) -> None:
        averages = state.averages(keep=run.runtime.is_main)
        if run.runtime.is_main:
            look(step, as_student(run.teacher, run.plan, averaged_student(run.plan, trainee.student, averages)))

    wrapped = run.runtime.accelerator.prepare(trainee)
    share = rate_share(section, run.plan.requested_ratio)
    return Job(recipe, run.teacher, wrapped, state, stored, run.runtime, run.progress, preview, share)


def _draw_sheet(run: Run, recipe: Recipe, step: int, student: LoadedPipeline) -> None:
    steps, guidance = recipe.evaluation.sampler_steps, recipe.evaluation.guidance
    drawn = sample(student, range(PREVIEW_SAMPLES), seed=recipe.seed, num_steps=steps, guidance=guidance)
    codec = run.teacher.codec
    write_sheet(drawn if codec is None else codec.decode(drawn), run.folder.preview(step))
