"""What the JSON files of a run must hold to be used; keys that are not named here may be there too."""

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


class Plan(TypedDict):
    """plan.json"""

    config: dict[str, Any]
    params: Count
    teacher_params: Count
    ratio: float
    requested_ratio: float | None
    choice: dict[str, Any]
    notes: list[str]


class Value(TypedDict):
    """One estimate."""

    value: float | None
    low: float | None
    high: float | None


class Metric(Value):
    """One metric, as Metrics.add makes it."""

    unit: str
    better: str | None
    teacher: Value | None
    untrained: Value | None
    real: Value | None
    samples: NotRequired[int]
    levels: NotRequired[list[dict[str, float | None]]]
    dtypes: NotRequired[dict[str, str]]
    device: NotRequired[str]
    threads: NotRequired[int]


class Missing(TypedDict):
    """What was not computed."""

    metric: str
    why: str


class Gate(TypedDict):
    """A gate that was judged."""

    expr: str
    value: float | None
    passed: bool


class Probe(TypedDict):
    """Of the verdict what reports show."""

    sentence: str


class Evaluation(TypedDict):
    """metrics.json and evaluation.json"""

    student: dict[str, Any]
    teacher: dict[str, Any] | None
    protocol: dict[str, Any]
    metrics: dict[str, Metric | list[Missing]]
    probe: NotRequired[Probe | None]
    warnings: NotRequired[Warnings]
    gates: NotRequired[list[Gate]]


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


class Licence(TypedDict):
    """How diffcompress.json states one."""

    id: str
    source: str
    name: NotRequired[str | None]
    link: NotRequired[str | None]


class Origin(TypedDict):
    """The teacher in diffcompress.json."""

    id: str | None
    name: str
    revision: str | None
    fingerprint: str
    files: Hashes


class Provenance(TypedDict):
    """diffcompress.json"""

    teacher: Origin
    license: Licence
    recipe: NotRequired[dict[str, Any]]
    denoiser: str
    pipeline: str | None
    dtype: str
    versions: dict[str, str]
    files: Hashes


class Pushed(TypedDict):
    """pushed.json"""

    repo: str
    url: str
    commit: str
    public: bool
    files: Hashes


class Exports(TypedDict):
    """exports/exports.json"""

    asked: dict[str, bool]
    pipeline_files: Hashes
    files: Hashes
    single_file: NotRequired[dict[str, Any]]
    onnx: NotRequired[dict[str, Any]]


class Assembled(TypedDict):
    """assembled.json, beside a pipeline that was put around a single checkpoint"""

    parts: dict[str, str]
