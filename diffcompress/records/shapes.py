"""What a run's own books must hold to be used; keys that are not named here may be there too.

What others read, too, are records (`evaluation`, `provenance`, `report`).
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field
from typing_extensions import NotRequired, TypedDict

Count = Annotated[int, Field(ge=0)]
Hashes = dict[str, str]
Warnings = list[str]
Timings = dict[str, float]
Environment = dict[str, Any]


class Asked(TypedDict, total=False):
    """run.json"""

    version: str | None
    teacher: str
    fingerprint: str
    target: dict[str, float | None]
    method: str
    data: str | None
    prompts: str | None
    dtype: str | None
    scheduler: str | None
    recipe_name: str | None
    recipe: dict[str, Any]


class Bank(TypedDict):
    """bank/bank.json"""

    key: str
    batch_size: Annotated[int, Field(gt=0)]
    source: NotRequired[str]
    calls: NotRequired[str]
    warnings: NotRequired[Warnings]


class Counted(TypedDict):
    """state.json of a checkpoint"""

    step: Count
    skipped: Count
    rollbacks: Count
    learning_rate_scale: NotRequired[float]
    seconds: float


class Budget(TypedDict):
    """budget.json"""

    max_time: Annotated[float, Field(gt=0)]


class Proof(TypedDict):
    """export-proof.json"""

    passed: bool
    files: NotRequired[Hashes]
    others: NotRequired[Hashes]
    tolerance: NotRequired[float]
    prediction_difference: NotRequired[float | None]
    image_difference: NotRequired[float | None]
    sampled_with: NotRequired[str | None]
    sampler_steps: NotRequired[int]
    dtype: NotRequired[str]
    versions: NotRequired[dict[str, str]]


class Exports(TypedDict):
    """exports/exports.json"""

    asked: dict[str, bool | str | None]
    pipeline_files: Hashes
    files: Hashes
    single_file: NotRequired[dict[str, Any]]
    onnx: NotRequired[dict[str, Any]]
    original: NotRequired[dict[str, Any]]
    gguf: NotRequired[dict[str, Any]]
    adapter: NotRequired[dict[str, Any]]


class Assembled(TypedDict):
    """assembled.json, beside a pipeline that was put around a single checkpoint"""

    parts: dict[str, str]
