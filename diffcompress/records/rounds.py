"""rounds.json: what each round of a run's training came to (jobs/rounds.py)."""

from __future__ import annotations

import math

from pydantic import Field

from diffcompress.records.record import Record
from diffcompress.records.units import percent

HOUR = 3600.0


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
        """Share of the held-out error that the last round took away; None before there are two."""
        if len(self.rounds) < 2:
            return None
        before, after = (one.error for one in self.rounds[-2:])
        return 1 - after / max(before, 1e-300)

    def after(self, seconds: float) -> tuple[int, float] | None:
        """Steps in as many more seconds, and the share of the error that they would take away, if it falls on by the
        power of the steps that it fell by in the last round."""
        if self.gain is None:
            return None
        before, last = self.rounds[-2:]
        steps = round(seconds * last.steps / max(last.seconds, 1e-9))
        power = math.log(max(before.error, 1e-300) / max(last.error, 1e-300)) / math.log(last.steps / before.steps)
        return steps, 1 - (1 + steps / last.steps) ** -max(power, 0.0)

    def end(self, least: float) -> str:
        """The sentence; least: the gain that was asked for."""
        assert self.gain is not None
        last, hour = self.rounds[-1], self.after(HOUR)
        assert hour is not None
        lowered = f"lowered the held-out error by {percent(self.gain, 2)}"
        found = lowered if self.gain > 0 else "did not lower the held-out error"
        why = f"less than {percent(least, 2)}" if self.gain < least else "and no more are made by themselves"
        return (
            f"training ended after {last.steps:,} steps: the last half of them {found}, {why}; "
            f"one more hour, {hour[0]:,} steps, would lower it by about {percent(hour[1], 2)} "
            f"(--max-time {math.ceil((last.seconds + HOUR) / 60)}m)"
        )
