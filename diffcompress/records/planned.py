"""What `plan` prints of a student that would be built."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from diffcompress.records.record import Record
from diffcompress.records.report import PREDICTS, Evidence, Part
from diffcompress.records.units import duration

Ratio = Annotated[float, Field(gt=0, lt=1)]


class Expected(Record):
    """Seconds of a whole run on one device, part by part."""

    closed = True
    device: str
    measured: bool = Field(description="by timing there; else from its maker's data sheet")
    bank: float
    start: float = Field(description="importance of the teacher's channels")
    targets: float = Field(description="predictions of the teacher beyond those that the bank leaves")
    training: float
    evaluation: float
    around: float = Field(description="loading, export, proof and report: a guess")
    total: float
    most: float | None = Field(
        None, description="in place of the total, where the training goes on while that pays, at the longest"
    )

    def told(self) -> str:
        parts = {name: getattr(self, name) for name in ("bank", "start", "targets", "training", "evaluation")}
        listed = ", ".join(f"{name} {duration(seconds)}" for name, seconds in parts.items() if seconds >= 1)
        most = "" if self.most is None else f", up to {duration(self.most)} while twice the steps pay"
        by = "by a short timing" if self.measured else "by its data sheet, which was never held against a run"
        return f"expected on {self.device}: {duration(self.total)}{most}, {by}{f' ({listed})' if listed else ''}"


class Planned(Record):
    """Sizes and costs; all but teacher, family and notes null where a ratio among several cannot be reached."""

    closed = True
    teacher: str
    family: str
    ratio: Ratio | None = Field(description="reached; null when unreachable among several")
    requested_ratio: Ratio | None
    params: int | None
    size_bytes: int | None
    config: dict[str, Any] | None
    prediction_type: str | None = Field(description=PREDICTS)
    macs: int | None = Field(description="multiply-accumulates of one call at batch 1")
    macs_ratio: float | None = Field(
        gt=0, description="student's multiply-accumulates of a denoiser call over its teacher's"
    )
    pipeline_bytes: int | None
    pipeline_ratio: float | None = Field(
        gt=0, description="bytes of the student's pipeline over its teacher's, as both are stored"
    )
    parts: list[Part] | None = Field(description="of the student's pipeline; null where there is none around it")
    peak_memory_bytes: int | None = Field(description="an estimate; the notes say of what")
    card: str | None = Field(description="the smallest GPU that would do; null where one alone does not")
    seconds_per_step: float | None = Field(description="of training, on the device of `expected`")
    expected: Expected | None = Field(description="how long a run takes; null where no card alone would do")
    evidence: Evidence | None
    notes: list[str]
