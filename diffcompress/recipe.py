"""Every knob with its default, in frozen validated sections; YAML in and out.

A recipe file holds only what differs from its `base` (another recipe's name; default: the defaults below). `--set
key=value` overrides single values. All bad keys and values are reported at once, each with its path.
"""

from __future__ import annotations

import difflib
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from diffcompress.errors import UsageError

METHODS = ("lift-place", "output-kd", "feature-kd", "none")


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StudentSection(Section):
    channels_per_group: int = Field(
        4, ge=1, description="fewest channels in a GroupNorm group; 1 blinds blocks to the timestep"
    )
    start: Literal["inherit", "random"] = Field(
        "inherit", description="initial weights: the teacher's most important channels, or random"
    )
    importance: Literal["magnitude", "taylor"] = Field("taylor", description="how channels are ranked when inheriting")


class BankSection(Section):
    num_samples: int = Field(2048, ge=1, description="clean samples drawn from the teacher")
    sampler_steps: int = Field(25, ge=1, description="denoiser evaluations per bank sample")
    eta: float = Field(1.0, ge=0.0, le=1.0, description="0: deterministic DDIM, 1: ancestral sampling")
    jitter: bool = Field(
        True, description="shift every sample's timestep grid at random, so trajectories visit all timesteps"
    )
    guidance: float = Field(
        1.0, ge=0.0, description="classifier-free guidance scale of bank samples, where there is a null conditioning"
    )
    null_share: float = Field(
        0.1,
        ge=0.0,
        le=1.0,
        description="share of targets with the null conditioning, so that guidance works on students",
    )
    num_prompts: int = Field(1024, ge=1, description="prompts of the built-in grammar, for text-conditional teachers")
    text_length: int | None = Field(
        None, ge=1, description="max_sequence_length of pipelines that take one; null: their default"
    )
    sample_size: int | None = Field(
        None, ge=1, description="height and width of samples (of latents); null: as the teacher's pipeline makes them"
    )


class TargetsSection(Section):
    reuse: int = Field(
        8, ge=1, description="times a stored teacher prediction is used; 1: a teacher forward each step, as published"
    )
    pool_size: int = Field(8192, ge=1, description="teacher predictions kept at a time")
    trajectory_share: float = Field(
        1.0, ge=0.0, le=1.0, description="most of a pool that may come from bank trajectories, at no teacher cost"
    )
    timesteps: Literal["uniform", "antithetic"] = Field("antithetic", description="how noise levels are drawn")


class LossWeights(Section):
    lift: float = Field(0.0, ge=0.0)
    place: float = Field(0.0, ge=0.0)
    output_kd: float = Field(0.0, ge=0.0)
    feature_kd: float = Field(0.0, ge=0.0)
    diffusion: float = Field(0.0, ge=0.0)
    variance_kd: float = Field(1.0, ge=0.0, description="of a learned variance, where the teacher has one")


class StageSection(Section):
    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$", description="names the stage's folder")
    num_steps: int = Field(ge=0, description="optimizer updates")
    weights: LossWeights
    group_size: int = Field(16, ge=1, description="elements per PLACE group")
    norm: Literal["l1", "squared"] = Field("l1", description="rho of the coarse term")
    reduction: Literal["mean", "sum"] = "mean"
    fine: Literal["squared", "relative"] = Field(
        "relative", description="fine term: squared residual (published) or per-sample root mean square"
    )
    gate: Literal["global", "per_sample"] = Field(
        "global", description="fine weight from the whole batch (published) or per sample"
    )
    coarse_weight: float = Field(0.3, ge=0.0, description="factor on the coarse term; 1 as published")
    output_norm: Literal["squared", "l1", "rms"] = Field("squared", description="norm of output_kd")

    @model_validator(mode="after")
    def _one_objective(self) -> StageSection:
        """Refuse what no step could compute."""
        if self.weights.lift and self.weights.place:
            raise ValueError("a stage is either lift or place, and both have a weight")
        if not any(weight for name, weight in self.weights.model_dump().items() if name != "variance_kd"):
            raise ValueError("all loss weights are 0")
        return self


class TrainingSection(Section):
    batch_size: int = Field(64, ge=1, description="global batch, over all processes")
    micro_batch_size: int | None = Field(
        None, ge=1, description="samples of a process's share in one forward; null: all of them, or what memory holds"
    )
    learning_rate: float = Field(3e-3, gt=0.0)
    warmup_steps: int = Field(50, ge=0)
    schedule: Literal["cosine", "constant"] = "cosine"
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = Field(0.0, ge=0.0)
    max_grad_norm: float = Field(1.0, gt=0.0)
    ema_half_life: float = Field(0.04, ge=0.0, description="as a fraction of the planned steps")
    checkpoint_every_seconds: float = Field(120.0, gt=0.0)
    preview_every_steps: int = Field(500, ge=1)
    log_every_steps: int = Field(10, ge=1)


class EvaluationSection(Section):
    num_samples: int = Field(2048, ge=1)
    sampler_steps: int = Field(25, ge=1)
    guidance: float = Field(1.0, ge=0.0, description="classifier-free guidance scale, for teacher and student alike")


class ExportSection(Section):
    onnx: bool = Field(False, description="also the denoiser as ONNX, checked with onnxruntime (diffcompress[onnx])")
    single_file: bool = Field(False, description="also the denoiser as one safetensors file with its config inside")


def _default_stages() -> tuple[StageSection, ...]:
    return (
        StageSection(name="lift", num_steps=1600, weights=LossWeights(lift=1.0)),
        StageSection(name="place", num_steps=400, weights=LossWeights(place=1.0)),
    )


class Recipe(Section):
    """All settings of one run. `description` is for people; every other value changes what is computed."""

    description: str = ""
    seed: int = Field(0, ge=0)
    student: StudentSection = StudentSection()
    bank: BankSection = BankSection()
    targets: TargetsSection = TargetsSection()
    stages: tuple[StageSection, ...] = Field(default_factory=_default_stages, min_length=1)
    training: TrainingSection = TrainingSection()
    evaluation: EvaluationSection = EvaluationSection()
    export: ExportSection = ExportSection()

    @property
    def num_steps(self) -> int:
        return sum(stage.num_steps for stage in self.stages)

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def builtin_folder() -> Path:
    """Where the built-in recipes lie: beside the package in a checkout, inside it in an installed wheel."""
    inside = Path(str(resources.files("diffcompress"))) / "recipes"
    return inside if inside.is_dir() else Path(str(resources.files("diffcompress"))).parent / "recipes"


def builtin_names() -> list[str]:
    return sorted(path.stem for path in builtin_folder().glob("*.yaml"))


def default_for(teacher: str, family: str = "default") -> str:
    """The built-in recipe for a teacher, by its id as the user wrote it, and by the name its family gives."""
    name, _, which = teacher.partition(":")
    if name == "demo":
        return f"demo-{which}" if f"demo-{which}" in builtin_names() else "demo"
    return family if family in builtin_names() else "default"


def load(
    name_or_file: str = "default", overrides: tuple[str, ...] = (), method: str = "lift-place", **values: Any
) -> Recipe:
    """The recipe `name_or_file` with `--set` overrides, a baseline's losses in place of ours, and top-level `values`.

    Raises UsageError for an unknown recipe or method, unreadable YAML, and for all bad keys and values at once.
    """
    if method not in METHODS:
        raise UsageError(f"unknown method '{method}'", f"choose one of {', '.join(METHODS)}{nearest(method, METHODS)}")
    data = _with_base(name_or_file, ())
    if method != "lift-place":
        data = _as_baseline(Recipe.model_validate(_validated(data, name_or_file).model_dump()), method)
    problems = []
    for override in overrides:
        problem = _set(data, override)
        if problem:
            problems.append(problem)
    data.update(values)
    return _validated(data, name_or_file, problems)


def parse(text: str, source: str) -> Recipe:
    """A full recipe from YAML text, as `recipe.yaml` of a run folder holds it."""
    return _validated(_mapping(text, source), source)


def _as_baseline(recipe: Recipe, method: str) -> dict[str, Any]:
    """The same stages and budget with a baseline's losses: feature KD keeps output KD, as published baselines do."""
    weights = {
        "output-kd": LossWeights(output_kd=1.0),
        "feature-kd": LossWeights(output_kd=1.0, feature_kd=1.0),
        "none": LossWeights(diffusion=1.0),
    }[method]
    stage = recipe.stages[-1].model_copy(
        update={"name": method.replace("-", "_"), "weights": weights, "num_steps": recipe.num_steps}
    )
    return recipe.model_copy(update={"stages": (stage,)}).model_dump(mode="json")


def _with_base(name_or_file: str, seen: tuple[str, ...]) -> dict[str, Any]:
    if name_or_file in seen:
        raise UsageError(
            f"recipe '{name_or_file}' is its own base ({' > '.join((*seen, name_or_file))})", "break the circle"
        )
    data = _mapping(_read(name_or_file), name_or_file)
    base = data.pop("base", None)
    return _merged(_with_base(base, (*seen, name_or_file)), data) if base else data


def _read(name_or_file: str) -> str:
    builtin = builtin_folder() / f"{name_or_file}.yaml"
    path = builtin if builtin.is_file() else Path(name_or_file)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        names = builtin_names()
        raise UsageError(
            f"no recipe '{name_or_file}': neither a built-in name nor a readable file ({type(error).__name__})",
            f"built-in recipes: {', '.join(names)}{nearest(name_or_file, names)}",
        ) from error


def _mapping(text: str, source: str) -> dict[str, Any]:
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(
            f"recipe '{source}' is not valid YAML: {' '.join(str(error).split())}", "mend the file"
        ) from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise UsageError(
            f"recipe '{source}' holds a {type(data).__name__}, not sections", "see diffcompress recipes show default"
        )
    return data


def _merged(base: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in data.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def _set(data: dict[str, Any], override: str) -> str | None:
    """Apply one `path=value`; returns what is wrong with it, if anything."""
    path, separator, text = override.partition("=")
    if not separator or not path:
        return f"--set {override}: expected key=value"
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return f"--set {override}: '{text}' is not a YAML value"
    *parents, last = path.split(".")
    node: Any = data
    if parents and parents[0] == "stages" and "stages" not in data:
        data["stages"] = [stage.model_dump(mode="json") for stage in _default_stages()]
    for part in parents:
        if isinstance(node, list):
            if not part.isdigit() or int(part) >= len(node):
                return f"--set {override}: no item '{part}' in a list of {len(node)}"
            node = node[int(part)]
        elif isinstance(node, dict):
            node = node.setdefault(part, {})
        else:
            return f"--set {override}: '{part}' lies below a plain value"
    if isinstance(node, list):
        if not last.isdigit() or int(last) >= len(node):
            return f"--set {override}: no item '{last}' in a list of {len(node)}"
        node[int(last)] = value
    elif isinstance(node, dict):
        # YAML 1.1 reads 1e-3 as text; a person means a number.
        node[last] = _number(value) if isinstance(value, str) else value
    else:
        return f"--set {override}: '{last}' lies below a plain value"
    return None


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _validated(data: dict[str, Any], source: str, problems: list[str] | None = None) -> Recipe:
    problems = list(problems or [])
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        problems += [_problem(item) for item in error.errors() if item["type"] != "too_short" or item["input"] == []]
        recipe = None
    if recipe is None or problems:
        raise UsageError(
            f"recipe '{source}' has {len(problems)} bad value(s): " + "; ".join(problems),
            "see diffcompress recipes show default",
        )
    return recipe


def nearest(word: str, known: Any) -> str:
    match = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean '{match[0]}'?" if match else ""


def _problem(item: Any) -> str:
    path = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        return f"{path}: unknown key"
    got = "" if isinstance(item["input"], (dict, list)) else f" (got {item['input']!r})"
    return f"{path}: {item['msg'].removeprefix('Value error, ')}{got}"
