"""The U-Net student of a target: the first of the search's that is what it seems, and fast enough."""

from __future__ import annotations

from collections.abc import Iterable

from diffcompress.families.base import Variant
from diffcompress.recipe import StudentSection
from diffcompress.student import costs
from diffcompress.student.proven import proven
from diffcompress.student.search import MOST_WORK, Candidate, Search
from diffcompress.student.student_plan import StudentPlan
from diffcompress.student.target import Target

# How often a search aims lower for a student that works too much.
ATTEMPTS = 3


def plan_unet(target: Target, variants: tuple[Variant, ...], section: StudentSection) -> StudentPlan:
    """Raises DoesNotFitError, naming the nearest ratio that can be reached, when no student comes near enough."""
    search = Search(target.family, target.config, variants, target.params, target.ratio, section.widths)
    found: list[Candidate] = []
    for candidates in search.candidates():
        found.extend(candidates)
        student = _first(target, candidates)
        if student is not None:
            return _fast(target, search, student)
    nearest = min(found, key=lambda candidate: abs(candidate.error))
    limit = f"at least {section.channels_per_group} channel(s) per norm group"
    raise target.not_met(nearest, limit, smallest=nearest.error > 0)


def _first(target: Target, candidates: Iterable[Candidate]) -> StudentPlan | None:
    """The best of `candidates` that is what it seems."""
    fitting = (candidate for candidate in sorted(candidates, key=lambda c: c.cost) if candidate.fits)
    students = (proven(target, candidate) for candidate in fitting)
    return next((student for student in students if student is not None), None)


def _fast(target: Target, search: Search, student: StudentPlan) -> StudentPlan:
    """`student`, or one of as many parameters that does not work more than MOST_WORK, as near to it as there is one.

    What attention does at each pair of positions the search does not know: it aims lower until that fits, too.
    """
    for _ in range(ATTEMPTS if search.widths == "balanced" else 0):
        own, whole = (costs.count(target.family, one).macs for one in (student.config, target.config))
        work = own / whole / student.ratio
        if work <= MOST_WORK:
            break
        search = search.aiming_lower(student.choice, work)
        other = _first(target, next(search.candidates()))
        if other is None:
            break
        student = other
    return student
