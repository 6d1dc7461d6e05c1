"""How long a run takes, told before it begins: by a short timing of its teacher and of a student."""

from __future__ import annotations

from diffcompress.bank.drawing import calls_per_step
from diffcompress.bank.keeping import Kept
from diffcompress.evaluation.cache import is_shipped
from diffcompress.evaluation.proportion import in_proportion
from diffcompress.jobs.deliver import calls_of, judged
from diffcompress.jobs.forecast import Work, expected, in_rounds
from diffcompress.jobs.pace import timed, timed_teacher
from diffcompress.jobs.run import Run
from diffcompress.recipe import Recipe
from diffcompress.records.planned import Expected
from diffcompress.runtime import Progress
from diffcompress.training import budget


def estimate(run: Run) -> str:
    """A sentence for the user."""
    teacher, plan, recipe, count = run.teacher, run.plan, run.request.recipe, run.runtime.count
    if teacher.placed is not None:  # as `initial_student` ranks its channels then
        student = recipe.student.model_copy(update={"importance": "magnitude"})
        recipe = recipe.model_copy(update={"student": student})
    share = max(1, recipe.training.batch_size // count)
    pace = timed(teacher, timed_teacher(teacher, teacher.codec), plan, recipe, share)
    space, asked = judged(teacher, recipe, Progress())
    drawn = is_shipped(teacher.fingerprint, asked)
    calls = calls_of(teacher, plan.config, teacher.codec, drawn=drawn)
    kept = None if run.own is not None else Kept.of(teacher.sample_shape, recipe.bank, run.folder.bank)

    def of(recipe: Recipe) -> Expected:
        work = Work.of(recipe, plan.ratio, teacher.sample_shape, calls_per_step(teacher, recipe.bank), kept)
        alone = run.folder.shared is None
        protocol = in_proportion(asked, recipe, space, calls) if alone else asked
        return expected(work, recipe, protocol, pace, drawn=drawn, count=count)

    if (max_time := run.request.asked.max_time) is not None:
        return of(budget.scaled(recipe, budget.TRAINING_SHARE * max_time / pace.step)).told()
    return in_rounds(recipe, of).told()
