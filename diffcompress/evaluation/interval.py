"""How many samples an evaluation draws so that its distance is known as well as was asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence

from diffcompress.evaluation.cache import SampleCache
from diffcompress.evaluation.features import FeatureSpace
from diffcompress.evaluation.frechet import Moments, frechet_distance
from diffcompress.evaluation.proportion import FEWEST, STEP, of_count
from diffcompress.evaluation.score import Contest
from diffcompress.records.metrics import Estimate
from diffcompress.records.protocol import Protocol
from diffcompress.records.units import percent

# Unless more are asked for; what published distances are made of.
MOST_SAMPLES = 50_000
# What few samples say of their interval is a guess.
MOST_TIMES = 4


def why_not(contest: Contest, most: int) -> str | None:
    """Why `contest` has no distance of `most` samples whose interval could be asked for, if so."""
    space = contest.space
    if space is None:
        return "there are no feature weights to measure one with"
    if space.real is None and contest.teacher is None:
        return "there is neither a --teacher nor --data to measure one to"
    if most < 2 * space.dimension:
        return f"{most:,} samples are too few for a Frechet distance of {space.dimension} features"
    return None


def precise(contests: Sequence[Contest], share: float, most: int, cache: SampleCache) -> Protocol:
    """The protocol of all `contests`, with as many samples as bring the 95 % interval of each student's Frechet
    distance, to real images or else to its teacher's samples, within `share` of it to either side; `most` at most.

    One number for all: distances of different numbers of samples do not compare. It follows from the samples alone, and
    those drawn on the way stay in `cache`. `why_not` must say nothing of any. Raises RunStopped or RunInterrupted
    between batches.
    """
    asked, space = contests[0].protocol, contests[0].space
    assert space is not None
    count = min(most, max(FEWEST, 2 * space.dimension))
    while True:
        protocol = of_count(asked, count, space)
        reach = max(_reach(_distance(contest, protocol, space, cache)) for contest in contests)
        # Processes on unlike machines may differ in a last digit, and draw together.
        following = cache.runtime.least(count if reach <= share else min(most, _more(count, reach / share)))
        if following == count:
            break
        count = following
    cache.progress.note(
        f"{count:,} samples: the 95 % interval reaches {percent(reach, 2)} of the distance to either side"
        + (f", not {percent(share)}, and more are not drawn" if reach > share else "")
    )
    return protocol


def _more(count: int, times_too_wide: float) -> int:
    """Samples, more than `count`, of which an interval is narrower by as much: it shrinks with their root."""
    wanted = STEP * math.ceil(count * times_too_wide**2 / STEP)
    return max(count + STEP, min(wanted, MOST_TIMES * count))


def _distance(contest: Contest, protocol: Protocol, space: FeatureSpace, cache: SampleCache) -> Estimate | None:
    """None for a student some of whose samples are not finite: it has no distance, however many are drawn."""
    space.to(contest.student.device)
    drawn = cache.draw(contest.student, protocol, space, "sampling the student")
    if drawn.num_broken:
        return None
    assert drawn.features is not None
    if space.real is not None:
        reference = space.real.moments
    else:
        assert contest.teacher is not None
        theirs = cache.draw(contest.teacher, protocol, space, "sampling the teacher")
        if theirs.num_broken:
            return None
        assert theirs.features is not None
        reference = Moments.of(theirs.features)
    return frechet_distance(drawn.features, reference, seed=protocol.seed)


def _reach(found: Estimate | None) -> float:
    """How far an interval reaches, as a share of the value."""
    if found is None or found.value <= 0:
        return 0.0
    return max(found.high - found.value, found.value - found.low) / found.value
