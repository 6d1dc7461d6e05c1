"""Train the student of a run: its start, its step counts and micro-batches, and all stages from wherever they stand."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from diffusers import ModelMixin
from torch import nn

from diffcompress.bank import bank as banks
from diffcompress.bank import targets
from diffcompress.bank.bank import Bank
from diffcompress.errors import DamagedError, UsageError
from diffcompress.jobs.run import Run
from diffcompress.jobs.students import as_student, averaged_student, copy_student, initial_student, taught_family
from diffcompress.pipeline.load import LoadedPipeline
from diffcompress.pipeline.sampling import sample
from diffcompress.recipe import Recipe, TrainingSection
from diffcompress.records import layout
from diffcompress.records.run_files import (
    damaged,
    discard,
    kept,
    read_tensors,
    write_checked,
    write_stamped,
    write_tensors,
)
from diffcompress.records.run_folder import read_recipe
from diffcompress.report.sheets import write_sheet
from diffcompress.training import budget, compiling, micro, trackers
from diffcompress.training.ema import Ema
from diffcompress.training.objective import Trainee, freeze_unused, make_adapters
from diffcompress.training.optim import Optimizer, rate_share
from diffcompress.training.stage import Job, run_stage
from diffcompress.training.state import Checkpoints, TrainingState

PREVIEW_SAMPLES = 16
# (step, student with its averaged weights as a pipeline): a look at it while it trains.
Look = Callable[[int, LoadedPipeline], None]


def starting_student(run: Run, bank: Bank) -> ModelMixin:
    """The student before training, kept in the run folder so that a resumed run starts from the same."""
    file = run.folder.student_init
    make = partial(initial_student, run.teacher, run.plan, run.request.recipe, bank, progress=run.progress)
    student = None
    # It follows from teacher, bank and recipe: one that is damaged is made again, and is the same.
    if run.runtime.is_main and kept(file, read_tensors, run.progress.warn) is None:
        student = make()
        write_tensors(file, student.state_dict())
    run.runtime.wait()
    if student is None:
        student = make(ranked=False)
        try:
            student.load_state_dict(read_tensors(file))
        except RuntimeError as error:
            raise damaged(file, str(error)) from error
    return nn.Module.to(student, run.runtime.device)


def train(run: Run, start: ModelMixin, bank: Bank, *, look: Look | None = None) -> tuple[Recipe, ModelMixin]:
    """The recipe with its final step counts, and the student after all stages with its EMA weights.

    look: what is done with the student every `training.preview_every_steps`; default: a sheet of samples is drawn.
    """
    trained = trainee(run, start)
    recipe = _settled(run, trained, bank)
    _recomputing(trained, recipe.training)
    if recipe.training.compile:
        _compiled(run, recipe, trained)
    bank = _grown(run, recipe, bank)
    job = training_job(run, recipe, trained, bank, look=look)
    folders = [run.folder.stage(index, stage.name) for index, stage in enumerate(recipe.stages)]
    # What a later stage has begun from is not needed any more.
    begun = [index for index, folder in enumerate(folders) if Checkpoints(folder).latest is not None]
    with trackers.following(run.runtime, run.folder.path, recipe):
        for index in range(max(begun, default=0), len(folders)):
            run_stage(job, index, folders[index])
            run.set_seconds(folders[index].name, job.state.counters.seconds)
    return recipe, averaged_student(run.plan, start, job.state)


def _grown(run: Run, recipe: Recipe, bank: Bank) -> Bank:
    """The bank with stored calls for all steps of `recipe`, where they may take the place of new ones."""
    section, uses = recipe.targets, recipe.num_steps * recipe.training.batch_size
    calls, folder = targets.distinct(section, uses), run.folder.bank
    if not targets.may_grow(section) or calls <= bank.num_trajectory:
        return bank
    with run.timed(layout.GROWN):
        return banks.grown(bank, folder, calls, run.teacher, recipe.bank, recipe.seed, run.runtime, run.progress)


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
    optimizer = Optimizer(trainee, recipe.training)
    state = TrainingState(trainee, Ema(trainee, recipe.training.ema_half_life * recipe.num_steps), optimizer)
    stored = targets.Targets(
        run.folder.targets,
        run.teacher,
        bank,
        recipe.targets,
        seed=recipe.seed,
        batch_size=recipe.training.batch_size,
        num_steps=recipe.num_steps,
        runtime=run.runtime,
        progress=run.progress,
        keep=run.folder.shared is not None,
        with_diffusion=any(stage.weights.diffusion > 0 for stage in recipe.stages),
    )
    look = look or partial(_draw_sheet, run, recipe)

    def preview(step: int) -> None:
        look(step, as_student(run.teacher, run.plan, averaged_student(run.plan, trainee.student, state)))

    wrapped = run.runtime.accelerator.prepare(trainee)
    share = rate_share(recipe.training, run.plan.requested_ratio)
    return Job(recipe, run.teacher, wrapped, state, stored, run.runtime, run.progress, preview, share)


def _draw_sheet(run: Run, recipe: Recipe, step: int, student: LoadedPipeline) -> None:
    steps, guidance = recipe.evaluation.sampler_steps, recipe.evaluation.guidance
    drawn = sample(student, range(PREVIEW_SAMPLES), seed=recipe.seed, num_steps=steps, guidance=guidance)
    codec = run.teacher.codec
    write_sheet(drawn if codec is None else codec.decode(drawn), run.folder.preview(step))


def _settled(run: Run, trainee: Trainee, bank: Bank) -> Recipe:
    """The recipe of this run with its final step counts: what recipe.yaml says once it is written."""
    recipe = _written(run)
    run.runtime.wait()  # before any process goes on to write it
    if recipe is not None:
        more = run.request.more_time(run.folder)
        return recipe if more is None else _extended(run, recipe, more)
    recipe = _fitted(run, trainee)
    if (share := rate_share(recipe.training, run.plan.requested_ratio)) < 1:
        rate, tuned = recipe.training.learning_rate, recipe.training.tuned_ratio
        run.progress.note(f"learning rate {share * rate:.2g}: the recipe's {rate:g} is for students of up to {tuned:g}")
    asked = recipe.training.compile
    found = _compiled(run, recipe, trainee) if asked else asked is None and _pays_to_compile(run, recipe, trainee, bank)
    recipe = recipe.model_copy(update={"training": recipe.training.model_copy(update={"compile": found})})
    if (max_time := run.request.asked.max_time) is not None:
        recipe = budget.fit_steps(training_job(run, recipe, trainee, bank), max_time)
        run.progress.note(f"{recipe.num_steps} steps fit into {max_time:g} s of training")
    write_recipe(run, recipe)
    run.runtime.wait()
    return recipe


def _written(run: Run) -> Recipe | None:
    """What recipe.yaml says; None where there is none, or a damaged one whose step counts are those that were asked
    for. Raises DamagedError for one with step counts of its own."""
    folder = run.folder
    try:
        if folder.budget.exists() and folder.stages():
            return read_recipe(folder.recipe)
        return kept(folder.recipe, read_recipe, run.progress.warn)
    except FileNotFoundError:
        return None
    except DamagedError as error:
        advice = f"delete it and the stage folders of {folder.path}, and run the same command again: it trains anew"
        raise DamagedError(f"{error.message}; it held the step counts that --max-time led to", advice) from error


def _extended(run: Run, recipe: Recipe, max_time: float) -> Recipe:
    """More steps for the last stage of a run that is finished; an unfinished one keeps those that it has."""
    folder = run.folder
    last = Checkpoints(folder.stage(len(recipe.stages) - 1, recipe.stages[-1].name))
    if not last.final.is_dir():
        run.progress.note("the step count is fixed and stays; ask for more time once the run is finished")
        return recipe
    if last.final_step == recipe.num_steps:  # else an earlier call came as far as the recipe
        recipe = budget.extend(recipe, max_time, folder.trained_seconds)
        run.runtime.wait()
        if run.runtime.is_main:
            for path in (folder.metrics, folder.proof, folder.report_json, folder.exports, folder.rounds):
                discard(path)
    write_recipe(run, recipe)
    run.runtime.wait()
    return recipe


def write_recipe(run: Run, recipe: Recipe) -> None:
    """What `train` goes by from now on; for all processes to wait for."""
    if run.runtime.is_main:
        write_stamped(run.folder.recipe, recipe.to_yaml())
        if run.request.asked.max_time is not None:
            write_checked(run.folder.budget, {"max_time": run.request.asked.max_time})


def _fitted(run: Run, trainee: Trainee) -> Recipe:
    """The recipe as memory holds it, the same for every process: with activations computed again where one of them
    cannot hold one sample's otherwise, and with a step's batch in parts where it cannot hold it whole."""
    runtime, recipe = run.runtime, run.request.recipe
    section = recipe.training
    _recomputing(trainee, section)
    if section.recompute and section.micro_batch_size is not None:
        return recipe
    mine = micro.fit(trainee, run.teacher, recipe.stages[-1], runtime.device)
    share = len(range(section.batch_size)[runtime.share(section.batch_size)])
    found = torch.tensor([[mine.part(share), -int(mine.recompute)]], device=runtime.device)
    size, again = runtime.accelerator.gather(found).amin(0).tolist()
    if again:
        run.progress.note("activations are computed again for the backward pass: memory holds not one sample's")
        section = section.model_copy(update={"recompute": True})
        _recomputing(trainee, section)
    if section.micro_batch_size is None and size < share:
        run.progress.note(f"batches of {share} are trained in parts of {size}: what memory holds")
        section = section.model_copy(update={"micro_batch_size": size})
    return recipe.model_copy(update={"training": section})


def _pays_to_compile(run: Run, recipe: Recipe, trainee: Trainee, bank: Bank) -> bool:
    """Whether the student is compiled, and stays so: in a long run on a GPU, if its steps are faster then."""
    if run.runtime.device.type not in compiling.DEVICES or trainee.adapters is not None or recipe.training.recompute:
        return False
    plain = budget.timed(training_job(run, recipe, trainee, bank)).step
    expected = run.request.asked.max_time or recipe.num_steps * plain
    if expected < compiling.LONG_ENOUGH or not _compiled(run, recipe, trainee):
        return False
    share = budget.timed(training_job(run, recipe, trainee, bank)).step / plain
    run.progress.note(f"a step of the compiled student takes {share:.2f} times as long")
    if share > compiling.WORTH:
        compiling.leave(trainee)
    return share <= compiling.WORTH


def _compiled(run: Run, recipe: Recipe, trainee: Trainee) -> bool:
    """Compile the student, in all processes or in none; told where it cannot be."""
    runtime, section = run.runtime, recipe.training
    rows = section.micro_batch_size or len(range(section.batch_size)[runtime.share(section.batch_size)])
    step = micro.example_step(trainee, run.teacher, recipe.stages[-1])
    why_not = compiling.compile_student(trainee, partial(step, rows))
    failed = runtime.accelerator.gather(torch.tensor([int(why_not is not None)], device=runtime.device))
    if why_not is not None:
        run.progress.note(f"the student trains as it is, not compiled: {why_not}")
    elif failed.any():
        compiling.leave(trainee)
    return not failed.any()


def _recomputing(trainee: Trainee, section: TrainingSection) -> None:
    """Raises UsageError where the recipe asks for what the student's class cannot do."""
    if not section.recompute:
        return
    try:
        trainee.student.enable_gradient_checkpointing()
    except ValueError as error:
        raise UsageError(f"training.recompute: {error}", "leave it out") from error
