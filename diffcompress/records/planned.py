"""What `plan` prints of a student that would be built."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from diffcompress.records.record import Record
from diffcompress.records.report import PREDICTS, Evidence, Part

Ratio = Annotated[float, Field(gt=0, lt=1)]


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
    seconds_per_step: float | None
    evidence: Evidence | None
    notes: list[str]
