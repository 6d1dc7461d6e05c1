"""diffcompress.json in an exported pipeline: all that it was made from."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from diffcompress.records.record import Number, Record, Sha256

PREDICTS = "what the student predicts, as diffusers spells it; null where no scheduler tells it"


class TeacherFiles(Record):
    """The teacher: what it is called elsewhere, and what it consists of."""

    closed = True
    id: str | None = Field(description="on the Hub, or of a demo; null for one from somebody's disk")
    name: str
    revision: str | None = Field(None, description="commit")
    params: int | None = None
    fingerprint: str
    files: dict[str, Sha256]
    parts: dict[str, str] = Field(
        default_factory=dict,
        description="of a single checkpoint: where each other part of its pipeline is from, the checkpoint's own file "
        "name, owner/name@commit on the Hub, or a folder's name",
    )
    always = ("revision", "params")


class StudentRatio(Record):
    closed = True
    params: int | None = None
    ratio: Number | None = None
    requested_ratio: Number | None = None
    always = ("params", "ratio", "requested_ratio")
    prediction_type: str | None = Field(None, description=PREDICTS)


class Seeds(Record):
    closed = True
    run: int | None = None
    evaluation: int | None = None
    always = ("run", "evaluation")


class LicenceTold(Record):
    closed = True
    id: str
    source: str = Field(description="who stated it")
    name: str | None = None
    link: str | None = None
    always = ("name", "link")


class Provenance(Record):
    """What travels with the weights."""

    closed = True
    format: Literal[1] = 1
    teacher: TeacherFiles
    student: StudentRatio = StudentRatio()
    target: dict[str, Any] | None = None
    recipe_name: str | None = None
    data: str | None = None
    recipe: dict[str, Any] = Field(default_factory=dict, description="recipe.schema.json")
    seed: int = 0
    bank: str = ""
    method: str = ""
    seeds: Seeds = Seeds()
    license: LicenceTold
    denoiser: str
    num_classes: int | None = Field(
        None, description="that samples are conditioned on, without the null class; null where they are not"
    )
    pipeline: str | None = Field(
        "", description="class of the diffusers pipeline; null for a denoiser alone, with its scheduler"
    )
    left_out: list[str] = Field(
        default_factory=list,
        description="tokenizers and text encoders that the pipeline is without: from_pretrained takes each as None; "
        "absent where there are none",
    )
    pipeline_tag: str = "unconditional-image-generation"
    dtype: Literal["float32", "float16", "bfloat16"]
    versions: dict[str, str]
    files: dict[str, Sha256]
    always = (
        "format", "student", "target", "recipe_name", "data", "recipe", "seed", "bank", "method", "seeds",
        "num_classes", "pipeline", "pipeline_tag",
    )  # fmt: skip

    @property
    def half_parts(self) -> bool:
        """Whether parts that the teacher stores in more than 16 bits came in half precision."""
        return bool(self.recipe.get("export", {}).get("half_parts"))

    @property
    def is_alone(self) -> bool:
        """Whether a denoiser is all there is; early versions made nothing else than pipelines, and did not say so."""
        return self.pipeline is None
