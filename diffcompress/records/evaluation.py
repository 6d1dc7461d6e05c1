"""What an evaluation found: evaluation.json, metrics.json of a run, and the metrics in every result."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import isfinite
from typing import Any, Literal

from pydantic import Field

from diffcompress.records.metrics import Estimate, Metric
from diffcompress.records.protocol import Protocol
from diffcompress.records.record import Number, Record

OTHERS = ("teacher", "untrained", "real")


class Value(Record):
    """A value and its 95 % interval; null where there is none."""

    closed = True
    value: Number | None
    low: Number | None = None
    high: Number | None = None
    samples: int | None = Field(None, description="that it is of, where they are fewer than the student's")
    always = ("low", "high")

    @property
    def known(self) -> float:
        """The value, where it is known to be there."""
        assert self.value is not None
        return self.value


class Level(Record):
    """Agreement in one bin of timesteps (inclusive)."""

    timestep_low: int
    timestep_high: int
    error: Number | None = Field(description="mean squared difference")
    relative_error: Number | None = Field(description="its root / the teacher's root mean square")
    slope: Number | None = Field(description="least squares of the teacher on the student, averaged")
    intercept: Number | None


class Measured(Record):
    """A metric of the student, beside that of the others."""

    value: Number | None
    low: Number | None = Field(None, description="95 % interval")
    high: Number | None = None
    unit: str = ""
    better: Literal["lower", "higher"] | None = None
    teacher: Value | None = None
    untrained: Value | None = None
    real: Value | None = None
    uncorrected: Value | None = Field(None, description="of the student, with as few samples as corrected")
    samples: int = 0
    reference: str | None = Field(None, description="the images that the student is compared with")
    real_samples: int = 0
    neighbours: int = 0
    levels: list[Level] = Field(default_factory=list, description="of agreement, from clean to noise")
    batch_size: int = 0
    device: str = ""
    threads: int = 0
    dtypes: dict[str, str] = Field(default_factory=dict, description="that each role computed in, where they differ")
    always = ("low", "high", "unit", "better", *OTHERS)

    @property
    def known(self) -> float:
        """The value, where it is known to be there."""
        assert self.value is not None
        return self.value

    def of(self, role: str) -> Value | None:
        """The value of student, teacher, untrained or real."""
        if role != "student":
            return getattr(self, role)
        return Value(value=self.value, low=self.low, high=self.high)


class Missing(Record):
    """A metric that was not computed, and why."""

    closed = True
    metric: str
    why: str


class Metrics(Record):
    """Metrics by name; which there are depends on what was at hand."""

    __pydantic_extra__: dict[str, Measured] = Field(init=False)
    not_computed: list[Missing] = Field(default_factory=list)
    always = ("not_computed",)

    @property
    def measured(self) -> dict[str, Measured]:
        return self.__pydantic_extra__

    def __getitem__(self, name: str) -> Measured:
        return self.measured[name]

    def __contains__(self, name: object) -> bool:
        return name in self.measured

    def get(self, name: str) -> Measured | None:
        return self.measured.get(name)

    def add(
        self,
        metric: Metric,
        found: Mapping[str, Estimate | float],
        *,
        aside: int | None = None,
        as_many: Mapping[str, Estimate | float] | None = None,
        **more: Any,
    ) -> None:
        """`found`: `metric` by role (student, teacher, untrained, real). Values that are not finite are not kept.

        The role "corrected" (the student behind its two coefficients) becomes a metric of its own. aside: samples of it
        and of the untrained student, where they are fewer than of the others; as_many: what student and teacher have
        with as few, which stands beside the corrected one's.
        """
        parts = {role: _value(value) for role, value in found.items() if isfinite(_as_number(value))}
        if "student" not in parts:
            self.skip((metric.name,), "the student's outputs are not finite")
            return
        others: dict[str, Any] = {role: parts.get(role) for role in OTHERS}
        if aside is not None and "untrained" in parts:
            others["untrained"] = parts["untrained"].model_copy(update={"samples": aside})
        about = {"unit": metric.kind.unit, "better": metric.kind.better}
        self.measured[metric.name] = Measured(**parts["student"].to_json(), **about, **others, **more)
        if "corrected" in parts:
            like = parts | {role: _value(value) for role, value in (as_many or {}).items()}
            others |= {"teacher": like.get("teacher"), "untrained": None, "uncorrected": like["student"]}
            if aside is not None:
                more["samples"] = aside
            self.measured[metric.mended.name] = Measured(**parts["corrected"].to_json(), **about, **others, **more)

    def skip(self, names: Iterable[str], why: str) -> None:
        self.not_computed.extend(Missing(metric=name, why=why) for name in names)


class Probe(Record):
    """What the two-coefficient probe says."""

    closed = True
    metric: str
    before: Number
    after: Number
    floor: Number = Field(description="of the teacher")
    explained: Number | None = Field(description="share of the distance beyond the floor that the lines take away")
    reading: Literal["train longer", "too small", "both", "at the teacher"]
    sentence: str


class Verdict(Record):
    """A gate and how it was judged."""

    expr: str
    value: Number | None
    passed: bool
    why: str = Field("", description="of a missed gate, what was not computed")


class Judged(Record):
    """A model that was evaluated."""

    id: str
    name: str = ""
    class_: str = Field("", alias="class")
    params: int = 0
    fingerprint: str = ""


class Scores(Record):
    """What `evaluate_pipeline` finds."""

    protocol: Protocol
    metrics: Metrics
    probe: Probe | None = None
    warnings: list[str] = []


class _Models(Record):
    student: Judged
    teacher: Judged | None


class Evaluation(Scores, _Models):  # in JSON the models come first
    """A student, its teacher, and what was found. gates: none in metrics.json of a run."""

    gates: list[Verdict] = []
    weight_change: Number | None = Field(
        None, description="of a run: how far training moved the weights that ship, over the size of those before"
    )
    unbeaten: bool = Field(False, description="among several students: none is as small and as good")
    always = ("gates",)


def _as_number(value: Estimate | float) -> float:
    return value.value if isinstance(value, Estimate) else value


def _value(value: Estimate | float) -> Value:
    parts = value._asdict() if isinstance(value, Estimate) else {"value": value, "low": None, "high": None}
    return Value(**parts)
