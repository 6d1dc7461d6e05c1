"""`shrink`: the whole story, one call for each step: plan, bank, inherit, train, evaluate, export, report."""

from __future__ import annotations

from diffcompress import recipe as recipes
from diffcompress.families import registry
from diffcompress.jobs.answer import answer, result
from diffcompress.jobs.request import Request
from diffcompress.jobs.signature import as_function
from diffcompress.pipeline.left_out import leave_out
from diffcompress.records.report import Shrunk
from diffcompress.records.request import ShrinkOptions
from diffcompress.runtime import Progress
from diffcompress.sources.resolve import resolve


def run(asked: ShrinkOptions, progress: Progress) -> Shrunk:
    """Compress `teacher` and return what `shrink --json` prints. The same call again resumes.

    Exactly one of ratio, params and size sets the target; push_to_hub (owner/name) is pushed to in the end, private
    unless `public`. seed: in place of the recipe's. shared: see RunFolder. Raises DiffCompressError subclasses, each
    with its exit status.
    """
    reference = resolve(str(asked.teacher), asked.scheduler)
    family = registry.find(reference.class_name)
    name = asked.recipe or recipes.default_for(reference.id, family.recipe)
    recipe = recipes.load(name, tuple(asked.overrides), asked.method, seed=asked.seed)
    reference = leave_out(reference, family, recipe.student.without)
    request = Request(asked=asked, reference=reference, recipe_name=name, recipe=recipe)
    finished = answer(request, progress)
    if finished is None:
        for doubt in recipes.doubts(name, family.class_name, family.recipe):
            progress.warn(doubt)
        return _make(request, progress)
    progress.note(f"the run in {finished.run} is finished, nothing was left to do")
    return finished


shrink = as_function("shrink", ShrinkOptions, run)


def _make(request: Request, progress: Progress) -> Shrunk:
    """Every step of the run that is not done yet. Its imports take seconds, which a finished run does without."""
    from diffcompress.bank import bank as banks
    from diffcompress.jobs.deliver import conclude
    from diffcompress.jobs.estimate import estimate
    from diffcompress.jobs.rounds import trained
    from diffcompress.jobs.run import opened
    from diffcompress.jobs.train import starting_student

    with opened(request, progress) as run:
        folder, runtime, recipe = run.folder, run.runtime, request.recipe
        if runtime.is_main and not folder.recipe.exists():
            progress.note(estimate(run))
        with run.timed("bank"):
            bank = banks.fill(folder.bank, run.teacher, recipe.bank, recipe.seed, run.own, runtime, progress)
        with run.timed("student-init"):
            start = starting_student(run, bank)
        settled, student = trained(run, start, bank)
        conclude(run, settled, start, student, bank)
        runtime.wait()
        return result(folder)
