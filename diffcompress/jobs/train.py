"""Train the student of a run: its start, and all stages from wherever they stand."""

from __future__ import annotations

from functools import partial

from diffusers import ModelMixin
from torch import nn

from diffcompress.bank import bank as banks
from diffcompress.bank import targets
from diffcompress.bank.bank import Bank
from diffcompress.jobs.run import Run
from diffcompress.jobs.settle import settled
from diffcompress.jobs.students import averaged_student, initial_student, ranked
from diffcompress.jobs.trainee import Look, trainee, training_job
from diffcompress.recipe import Recipe
from diffcompress.records import layout
from diffcompress.records.run_files import damaged, kept, read_tensors, write_tensors
from diffcompress.training import trackers
from diffcompress.training.stage import run_stage
from diffcompress.training.state import Checkpoints


def starting_student(run: Run, bank: Bank) -> ModelMixin:
    """The student before training, kept in the run folder so that a resumed run starts from the same."""
    file, runtime, recipe = run.folder.student_init, run.runtime, run.request.recipe
    make = partial(initial_student, run.teacher, run.plan, recipe, bank, progress=run.progress)
    student = None
    # It follows from teacher, bank and recipe: one that is damaged is made again, and is the same.
    if runtime.anywhere(runtime.is_main and kept(file, read_tensors, run.progress.warn) is None):
        scores = ranked(run.teacher, recipe, bank, runtime, run.progress)
        if runtime.is_main:
            student = make(scores=scores)
            write_tensors(file, student.state_dict())
    runtime.wait()
    if student is None:
        student = make(refitted=False)
        try:
            student.load_state_dict(read_tensors(file))
        except RuntimeError as error:
            raise damaged(file, str(error)) from error
    return nn.Module.to(student, runtime.device)


def train(run: Run, start: ModelMixin, bank: Bank, *, look: Look | None = None) -> tuple[Recipe, ModelMixin]:
    """The recipe with its final step counts, and the student after all stages with its EMA weights.

    look: what is done with the student every `training.preview_every_steps`; default: a sheet of samples is drawn.
    """
    trained = trainee(run, start)
    if run.teacher.parted:
        run.teacher.leave()
    recipe = settled(run, trained, bank)
    bank = _grown(run, recipe, bank)
    if run.teacher.parted:  # it was asked for more samples
        run.teacher.leave()
    job = training_job(run, recipe, trained, bank, look=look)
    folders = [run.folder.stage(index, stage.name) for index, stage in enumerate(recipe.stages)]
    # What a later stage has begun from is not needed any more.
    begun = [index for index, folder in enumerate(folders) if Checkpoints(folder).latest is not None]
    with trackers.following(run.runtime, run.folder.path, recipe):
        for index in range(max(begun, default=0), len(folders)):
            run_stage(job, index, folders[index])
            run.set_seconds(folders[index].name, job.state.counters.seconds)
    return recipe, averaged_student(run.plan, start, job.state.averages())


def _grown(run: Run, recipe: Recipe, bank: Bank) -> Bank:
    """The bank with stored calls for all steps of `recipe`, where they may take the place of new ones."""
    section, uses = recipe.targets, recipe.num_steps * recipe.training.batch_size
    calls, folder = targets.distinct(section, uses), run.folder.bank
    if not targets.may_grow(section) or calls <= bank.num_trajectory:
        return bank
    with run.timed(layout.GROWN):
        return banks.grown(
            bank, folder, calls, run.plan.ratio, run.teacher, recipe.bank, recipe.seed, run.runtime, run.progress
        )
