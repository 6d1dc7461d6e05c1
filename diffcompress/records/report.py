"""What a run came to: report.json, and what `shrink` prints of it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any, Literal

from pydantic import Field

from diffcompress.records.evaluation import Measured, Probe, Verdict
from diffcompress.records.layout import RUN
from diffcompress.records.protocol import Protocol
from diffcompress.records.provenance import PREDICTS, Provenance
from diffcompress.records.record import Empty, Number, Record
from diffcompress.records.rounds import Rounds


class TeacherTold(Record):
    closed = True
    id: str | None
    params: int | None


class StudentTold(Record):
    closed = True
    params: int | None
    ratio: Number | None
    requested_ratio: Number | None
    config: dict[str, Any] | None
    prediction_type: str | None = Field(description=PREDICTS)


class PlanFile(Record):
    """plan.json of a run: the student that was planned."""

    config: dict[str, Any]
    params: int
    teacher_params: int
    ratio: Number
    requested_ratio: Number | None
    prediction_type: str | None = None
    choice: dict[str, Any]
    notes: list[str]
    teacher_pipeline_bytes: int | None = None
    adapters: dict[str, str] = {}


class AdaptersFit(Record):
    """How many layers of a block of the student a LoRA adapter of the teacher fits, and which block of the teacher they
    were in."""

    closed = True
    student: str
    teacher: str
    layers: int

    @classmethod
    def by_block(cls, adapters: Mapping[str, str]) -> list[AdaptersFit]:
        """The teacher's layers by the student's, counted by block: the name up to its first number, or its root."""

        def block(layer: str) -> str:
            found = re.match(r".*?\.\d+(?=\.)", layer)
            return found[0] if found else layer.split(".")[0]

        counted = Counter((block(ours), block(theirs)) for ours, theirs in adapters.items())
        return [cls(student=ours, teacher=theirs, layers=count) for (ours, theirs), count in counted.items()]


class PlanTold(Record):
    """Why the student has its shape; adapters: where those of the teacher still fit."""

    choice: dict[str, Any] | None
    notes: list[str]
    adapters: list[AdaptersFit] = []


class StageTold(Record):
    """A stage of the training; skipped steps and rollbacks are its own, `first` and `last` rows of its log."""

    closed = True
    name: str
    folder: str
    curves: str
    finished: bool
    steps: int | None = Field(description="over all stages")
    seconds: Number | None
    skipped: int | None
    rollbacks: int | None
    first: dict[str, Number | None]
    last: dict[str, Number | None]


class Pushed(Record):
    """What lies on the Hub, the weights by their hashes."""

    closed = True
    repo: str
    url: str
    commit: str
    public: bool
    files: dict[str, str]


class Known(Record):
    """A student that was measured or published."""

    closed = True
    class_name: str
    kind: Literal["measured", "published", "trained alone"]
    teacher: str
    teacher_params: int
    student_params: int | None
    ratio: Number
    method: str
    told: str
    source: str
    url: str | None


class Evidence(Record):
    """What is known of students of this class near this ratio; "inside" where some distilled one was as small."""

    closed = True
    verdict: Literal["inside", "below", "unknown"]
    told: str
    smallest_ratio: Number | None
    nearest: list[Known]


class Part(Record):
    """A part of the pipeline, with its bytes on disk, or as planned."""

    closed = True
    name: str
    bytes: int
    share: Number | None = Field(None, description="of the pipeline's bytes")
    denoiser: bool
    always = ("share",)

    @staticmethod
    def listed(sizes: Mapping[str, int], denoisers: Collection[str]) -> list[Part]:
        """All parts of a pipeline by their bytes: the denoiser first, then the largest."""
        total = sum(sizes.values())
        parts = [
            Part(name=name, bytes=size, share=size / total if total else None, denoiser=name in denoisers)
            for name, size in sizes.items()
        ]
        return sorted(parts, key=lambda part: (not part.denoiser, -part.bytes))


class PipelineSize(Record):
    """Of all parts together, which is what has to be downloaded and held in memory."""

    closed = True
    bytes: int | None
    teacher_bytes: int | None
    ratio: Number | None = Field(description="student's bytes over its teacher's")

    @classmethod
    def of(cls, ours: int | None, theirs: int | None) -> PipelineSize:
        return cls(bytes=ours, teacher_bytes=theirs, ratio=ours / theirs if ours and theirs else None)


class Finding(Record):
    """Why a run ended badly, by the doctor's name of it."""

    closed = True
    cause: str
    evidence: str = Field(description="what was measured or logged")
    advice: str = Field(description="the one thing to do")

    @property
    def sentence(self) -> str:
        return f"{self.cause}: {self.evidence}; {self.advice}"


class Shrunk(Record):
    """A run; what is unknown is null."""

    closed = True
    run: str
    pipeline: str | None
    report: str
    teacher: TeacherTold
    student: StudentTold
    stages: list[StageTold]
    metrics: dict[str, Measured] = Field(description="by name; which there are depends on what was at hand")
    seconds: Number | None
    pushed: Pushed | None
    warnings: list[str]
    whole: PipelineSize | None = Field(None, description="the pipeline, on disk")
    diagnosis: list[Finding] = Field(default_factory=list, description="the likeliest first; none of a healthy run")
    always = ("whole", "diagnosis")


class Report(Shrunk):
    """Everything that a report says."""

    finished: bool
    asked: dict[str, Any] = Field(description=RUN)
    command: str
    plan: PlanTold
    evidence: Evidence | None
    protocol: Protocol | Empty
    probe: Probe | None
    gates: list[Verdict] = Field(
        description="of the evaluation of exactly this student in RUN/evaluation, if there is one"
    )
    gates_protocol: Protocol | Empty = Field(description="how that evaluation measured")
    weights_bytes: int | None
    parts: list[Part]
    proof: dict[str, Any] | None
    timings: dict[str, Number | None]
    rounds: Rounds | None = Field(description="of a training that nobody gave a time")
    environment: dict[str, Any]
    exports: dict[str, Any] | None
    provenance: Provenance | Empty
    not_computed: list[str]
    recipe: str | None
