"""rounds.json: what each round of a run's training came to (jobs/rounds.py), and whether another one pays."""

from __future__ import annotations

import math

from pydantic import Field

from diffcompress.records.record import Record
from diffcompress.records.units import percent

# Of a training that nobody gave a time: 128,000 steps from 2,000.
MOST_ROUNDS = 7
HOUR, LEAST_AN_HOUR = 3600.0, 0.01
# More than twice the steps lowered the held-out error by anywhere (2 to 10 %): what a first round is taken to gain.
ASSUMED_GAIN = 0.1


class Round(Record):
    """After all steps so far."""

    closed = True
    steps: int
    seconds: float = Field(description="of training so far, with what was drawn for it")
    error: float = Field(description="on the teacher's held-out samples: root of 1 - agreement")


class Rounds(Record):
    """ended: why there is no further round, and what one more hour would bring."""

    closed = True
    rounds: list[Round] = []
    ended: str | None = None

    @property
    def gain(self) -> float | None:
        """Share of the held-out error that twice the steps took away; None before there are two rounds."""
        if len(self.rounds) < 2:
            return None
        before, after = (one.error for one in self.rounds[-2:])
        return 1 - after / max(before, 1e-300)

    def after(self, seconds: float) -> tuple[int, float]:
        """Steps in as many more seconds, and the share of the error that they would take away, if it falls on by the
        power of the steps that it fell by."""
        last, gain = self.rounds[-1], ASSUMED_GAIN if self.gain is None else self.gain
        more = seconds / max(last.seconds, 1e-9)
        power = -math.log2(min(1.0, max(1 - gain, 1e-300)))
        return round(more * last.steps), 1 - (1 + more) ** -power

    def end(self, least: float) -> str | None:
        """Why no further round pays, if so; least: share of the error that one must take away."""
        last, (steps, hour) = self.rounds[-1], self.after(HOUR)
        if self.gain is not None and self.gain < least:
            lowered = f"lowered the held-out error by {percent(self.gain, 2)}"
            why = f"the last half of them {lowered if self.gain > 0 else 'did not lower the held-out error'}"
            why += f", less than {percent(least, 2)}"
        elif hour < LEAST_AN_HOUR:
            why = f"an hour more is worth less than {percent(LEAST_AN_HOUR, 2)} of the held-out error"
        elif len(self.rounds) >= MOST_ROUNDS:
            why = "more are not made by themselves"
        else:
            return None
        guess = " at a guess" if self.gain is None else ""
        return (
            f"training ended after {last.steps:,} steps: {why}; one more hour, {steps:,} steps, would lower that error "
            f"by about {percent(hour, 2)}{guess} (--max-time {math.ceil((last.seconds + HOUR) / 60)}m)"
        )


def pays(seconds: float) -> bool:
    """Whether another round is made after one that took `seconds`, as far as is known before it."""
    return Rounds(rounds=[Round(steps=1, seconds=seconds, error=1.0)]).end(0.0) is None
