"""How long a run takes, told before it begins: what it asks of teacher and student, at the pace of a device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from diffcompress.bank.keeping import Kept
from diffcompress.bank.targets import TAYLOR_BATCH_SIZE, TAYLOR_BATCHES, distinct, may_grow
from diffcompress.evaluation.proportion import Calls
from diffcompress.jobs.pace import Pace
from diffcompress.jobs.trainee import PREVIEW_SAMPLES
from diffcompress.recipe import Recipe
from diffcompress.records.planned import Expected
from diffcompress.records.protocol import Protocol
from diffcompress.records.rounds import MOST_ROUNDS, pays
from diffcompress.training import budget

# Loading, the pipeline's rehearsal, its export and proof, the report.
AROUND_SECONDS = 30.0
# Forward, again for activations that were not kept, and backward.
TAYLOR_PASSES = 4


@dataclass(frozen=True)
class Work:
    """Calls of the teacher with one sample that a run asks for before its evaluation: for the bank and what it grows
    by, for the student's start, for targets that no stored call is used for."""

    bank: int
    start: int
    targets: int

    @classmethod
    def of(
        cls, recipe: Recipe, ratio: float, sample_shape: tuple[int, ...], calls_per_step: int, kept: Kept | None
    ) -> Work:
        """ratio: of the student; calls_per_step: of its teacher's sampling; kept: of the calls, None for the
        user's images in place of samples."""
        section, uses = recipe.bank, recipe.num_steps * recipe.training.batch_size
        wanted = distinct(recipe.targets, uses)
        taylor = recipe.student.start == "inherit" and recipe.student.importance == "taylor"
        start = TAYLOR_PASSES * TAYLOR_BATCHES * TAYLOR_BATCH_SIZE if taylor else 0
        if kept is None:
            return cls(0, start, wanted)
        grown = kept.growth(wanted, ratio, sample_shape, section, calls_per_step)
        more = grown if may_grow(recipe.targets) else 0
        stored = (section.num_samples + more) * kept.positions
        free = 0 if recipe.targets.reuse == 1 else min(stored, int(recipe.targets.trajectory_share * wanted))
        sampled = (section.num_samples + more) * section.sampler_steps * calls_per_step
        return cls(sampled, start, max(0, wanted - free))


def expected(work: Work, recipe: Recipe, protocol: Protocol, pace: Pace, *, drawn: bool, count: int = 1) -> Expected:
    """drawn: whether the teacher's samples for the evaluation are there already; count: of processes, which
    share all work."""
    bank, start, targets = (pace.teacher * calls / count for calls in (work.bank, work.start, work.targets))
    sheets = recipe.num_steps // recipe.training.preview_every_steps
    sheet = PREVIEW_SAMPLES * (recipe.evaluation.sampler_steps * pace.student + pace.picture)
    training = recipe.num_steps * pace.step + sheets * sheet
    evaluation = Calls(pace.student, pace.teacher, drawn, pace.picture).evaluation(protocol) / count
    parts = {"bank": bank, "start": start, "targets": targets, "training": training, "evaluation": evaluation}
    told = {name: round(seconds, 2) for name, seconds in (parts | {"around": AROUND_SECONDS}).items()}
    return Expected(device=pace.device, measured=pace.measured, **told, total=round(sum(told.values()), 2))


def in_rounds(recipe: Recipe, of: Callable[[Recipe], Expected]) -> Expected:
    """`of` the recipe, or of the fewest and most rounds of one that goes on while that pays (jobs/rounds.py).

    The most: if each takes as much of the error away as the first is taken to.
    """
    if recipe.stages[-1].least_gain is None:
        return of(recipe)
    rounds = [of(recipe)]
    drawn = rounds[0].bank
    while len(rounds) < MOST_ROUNDS and pays(rounds[-1].training + rounds[-1].targets + rounds[-1].bank - drawn):
        rounds.append(of(budget.doubled(recipe, len(rounds))))
    if len(rounds) <= 2:
        return rounds[-1]
    return rounds[1].model_copy(update={"most": rounds[-1].total})
