"""What a run trains by: its recipe with step counts and all else that memory and speed decide, written once."""

from __future__ import annotations

from functools import partial

import torch

from diffcompress.bank.bank import Bank
from diffcompress.errors import DamagedError, UsageError
from diffcompress.jobs.run import Run
from diffcompress.jobs.trainee import training_job
from diffcompress.recipe import Recipe, TrainingSection
from diffcompress.records.run_files import discard, kept, write_checked, write_stamped
from diffcompress.records.run_folder import read_recipe
from diffcompress.training import budget, compiling, micro
from diffcompress.training.objective import Trainee
from diffcompress.training.optim import rate_share
from diffcompress.training.state import Checkpoints


def settled(run: Run, trainee: Trainee, bank: Bank) -> Recipe:
    """The recipe of this run with its final step counts: what recipe.yaml says once it is written. `trainee` is made to
    train by it."""
    recipe = _written(run)
    run.runtime.wait()  # before any process goes on to write it
    if recipe is None:
        recipe = _decided(run, trainee, bank)
    elif (more := run.request.more_time(run.folder)) is not None:
        recipe = _extended(run, recipe, more)
    _recomputing(trainee, recipe.training)
    if recipe.training.compile:
        _compiled(run, recipe, trainee)
    return recipe


def _decided(run: Run, trainee: Trainee, bank: Bank) -> Recipe:
    """The recipe of a run that begins to train."""
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
    cannot hold one sample's otherwise, and with a step's batch in parts where it cannot hold it whole. What the
    optimizer keeps is shared out before that."""
    runtime, recipe = run.runtime, run.request.recipe
    section = recipe.training
    _recomputing(trainee, section)
    settled = section.shard is not None or runtime.count == 1
    if section.recompute and section.micro_batch_size is not None and settled:
        return recipe
    mine = micro.fit(
        trainee, run.teacher, recipe.stages[-1], runtime.device, processes=runtime.count, shard=section.shard
    )
    share = _rows(run, section)
    found = torch.tensor([[mine.part(share), -int(mine.recompute), -int(mine.shard)]], device=runtime.device)
    size, again, sharded = runtime.accelerator.gather(found).amin(0).tolist()
    if runtime.count > 1 and section.shard is None:
        section = section.model_copy(update={"shard": bool(sharded)})
    if sharded:
        run.progress.note(f"the optimizer's moments and the averages are shared out over {runtime.count} processes")
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
    rows = section.micro_batch_size or _rows(run, section)
    step = micro.example_step(trainee, run.teacher, recipe.stages[-1])
    why_not = compiling.compile_student(trainee, partial(step, rows))
    failed = runtime.accelerator.gather(torch.tensor([int(why_not is not None)], device=runtime.device))
    if why_not is not None:
        run.progress.note(f"the student trains as it is, not compiled: {why_not}")
    elif failed.any():
        compiling.leave(trainee)
    return not failed.any()


def _rows(run: Run, section: TrainingSection) -> int:
    """Of a step's batch, in this process."""
    return len(range(section.batch_size)[run.runtime.share(section.batch_size)])


def _recomputing(trainee: Trainee, section: TrainingSection) -> None:
    """Raises UsageError where the recipe asks for what the student's class cannot do."""
    if not section.recompute:
        return
    try:
        trainee.student.enable_gradient_checkpointing()
    except ValueError as error:
        raise UsageError(f"training.recompute: {error}", "leave it out") from error
