"""What each job can be asked for, every option stated once.

The command line, the Python functions, what run.json keeps and the command in the report all follow from these
records (docs/decisions/0014-one-list-of-options.md). An option that stands in a record is known everywhere; what it
does stands where it is used. A record that exists makes sense: what contradicts itself raises UsageError at once.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

from diffcompress.errors import UsageError
from diffcompress.recipe import METHODS, nearest
from diffcompress.recipe.methods import OURS
from diffcompress.records.run_identity import as_path

TARGETS = ("ratio", "params", "size")
DTYPES = ("float32", "float16", "bfloat16")
SHORT_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
Reader = Literal["text", "texts", "whole", "flag", "data", "ratios", "count", "bytes", "seconds", "share"]


@dataclass(frozen=True)
class Option:
    """How an option is told.

    help, metavar, by_default: as in --help; python: what a Python caller gives, where that is not the text; flag: where
    it is not the name with dashes; reads: what the text on the command line becomes (cli/options.py); least: smallest
    whole number; kept: run.json keeps it, a "path" by the place it names, and runs that differ in it are different
    runs; repeated: the command that makes the student again has it, as it has all that is kept.
    """

    help: str
    metavar: str | None = None
    python: str = ""
    flag: str = ""
    reads: Reader = "text"
    by_default: str = ""
    least: int | None = None
    kept: Literal["value", "path"] | None = None
    repeated: bool = False

    def spelled(self, name: str) -> str:
        """The option of the field `name` as it is typed."""
        return self.flag or f"--{name.replace('_', '-')}"


_TEACHER = "demo, a Hub id (owner/name[@revision]), a diffusers folder, or a .safetensors checkpoint."
_SEED = "Same seed, same machine, same result."
Teacher = Annotated[str | Path, Option(_TEACHER)]
Params = Annotated[
    int | None,
    Option("Target as student denoiser parameters: 40M.", "N", "target as a number of parameters", reads="count"),
]
Size = Annotated[
    int | None,
    Option("Target as size of the denoiser file: 80MB.", "BYTES", "target as bytes of the file", reads="bytes"),
]
Data = Annotated[
    str | Path | None,
    Option("Image folder or Hub data set; default: the teacher's samples.", "PATH", reads="data", kept="path"),
]
Prompts = Annotated[str | None, Option("One prompt a line, for text-conditional teachers.", "FILE", kept="path")]
RecipeName = Annotated[
    str | None, Option("A built-in recipe or a YAML file.", "NAME_OR_FILE", by_default="fits the teacher")
]
Overrides = Annotated[
    Sequence[str], Option("One recipe value; repeatable.", "KEY=VALUE", '"key=value", each', "--set", "texts")
]
Dtype = Annotated[str | None, Option("Of the exported weights; default: the teacher's.", "D", kept="value")]
Scheduler = Annotated[str | None, Option("Scheduler config of a denoiser folder.", "PATH", kept="path")]
Device = Annotated[str | None, Option("Default: cuda, else mps, else cpu.")]


@dataclass(frozen=True)
class ShrinkOptions:
    """What `shrink` can be asked for. shared: where several runs keep what they share (RunFolder), for Python alone."""

    teacher: Teacher
    _: KW_ONLY
    ratio: Annotated[
        float | None,
        Option(
            "Share of the teacher's parameters to keep; several: one student each.",
            "R",
            "share of the teacher's parameters to keep, between 0 and 1; this, params or size",
            reads="ratios",
        ),
    ] = None
    params: Params = None
    size: Size = None
    output: Annotated[
        str | Path | None,
        Option(
            "Run folder; default ./<teacher>-<ratio>.", "DIR", "run folder; by default named after teacher and ratio"
        ),
    ] = None
    overwrite: Annotated[bool, Option("Replace what the run folder holds.", reads="flag")] = False
    data: Data = None
    prompts: Prompts = None
    method: Annotated[str, Option("lift-place, output-kd, feature-kd or none.", "M", kept="value")] = OURS
    max_time: Annotated[
        float | None, Option("Training time: 90s, 30m, 8h.", "T", "seconds of training", reads="seconds")
    ] = None
    recipe: RecipeName = None
    overrides: Overrides = ()
    seed: Annotated[
        int | None, Option(_SEED, reads="whole", by_default="the recipe's, 0 unless it says so", least=0)
    ] = None
    device: Device = None
    push_to_hub: Annotated[
        str | None, Option("Push the finished student to owner/name on the Hub; private.", "REPO")
    ] = None
    public: Annotated[bool, Option("With --push-to-hub: public instead.", reads="flag")] = False
    license: Annotated[str | None, Option("For the card when the teacher's is unknown.", "ID", repeated=True)] = None
    dtype: Dtype = None
    scheduler: Scheduler = None
    shared: Path | None = None

    def __post_init__(self) -> None:
        check_target(self.ratio, self.params, self.size)
        if isinstance(self.ratio, Sequence):  # from Python, where nothing reads it before
            told = ", ".join(f"{ratio:g}" for ratio in self.ratio)
            raise UsageError(f"one call makes one student, but the ratios are {told}", "call it once for each ratio")
        if self.max_time is not None and not 0 < self.max_time < math.inf:
            raise UsageError(
                f"--max-time of {self.max_time:g} seconds is not a positive number", "for example 1800 for 30m"
            )
        if self.method not in METHODS:
            known = f"choose one of {', '.join(METHODS)}{nearest(self.method, METHODS)}"
            raise UsageError(f"unknown method '{self.method}'", known)
        if self.public and self.push_to_hub is None:  # it would be silently without effect
            raise UsageError("--public says nothing without --push-to-hub", "add --push-to-hub owner/name")
        object.__setattr__(self, "dtype", known_dtype(self.dtype))

    @property
    def target(self) -> dict[str, Any]:
        """ratio, params and size, all but one None."""
        return {name: getattr(self, name) for name in TARGETS}

    def kept(self) -> dict[str, Any]:
        """What run.json keeps of the options beside the target: a name that stands for a place, by that place."""
        values = {name: (option, getattr(self, name)) for name, option in options_of(type(self)).items() if option.kept}
        return {
            name: as_path(None if value is None else str(value)) if option.kept == "path" else value
            for name, (option, value) in values.items()
        }


@dataclass(frozen=True)
class PlanOptions:
    """What `plan` can be asked for."""

    teacher: Teacher
    _: KW_ONLY
    ratio: Annotated[
        float | Sequence[float] | None,
        Option(
            "Shares of the teacher's parameters.",
            "R[,R2,...]",
            "share of the teacher's parameters, or several; this, params or size",
            reads="ratios",
        ),
    ] = None
    params: Params = None
    size: Size = None
    recipe: RecipeName = None
    overrides: Overrides = ()
    dtype: Dtype = None
    scheduler: Scheduler = None

    def __post_init__(self) -> None:
        check_target(self.ratio, self.params, self.size)
        object.__setattr__(self, "dtype", known_dtype(self.dtype))


@dataclass(frozen=True)
class EvaluateOptions:
    """What `evaluate` can be asked for."""

    student: Annotated[
        str | Path | Sequence[str | Path],
        Option("A pipeline such as RUN/pipeline; several are compared.", reads="texts"),
    ]
    _: KW_ONLY
    teacher: Annotated[str | Path | None, Option(f"Its teacher: {_TEACHER}", "T")] = None
    data: Data = None
    prompts: Prompts = None
    num_samples: Annotated[int | None, Option("Samples to score.", "N", reads="whole", least=2)] = None
    interval: Annotated[
        float | None,
        Option(
            "As many samples as bring the distance's 95 % interval within this share of it: 5%.",
            "SHARE",
            "share of the distance that its 95 % interval reaches to either side, by as many samples as that takes",
            reads="share",
        ),
    ] = None
    sampler_steps: Annotated[int | None, Option("Denoiser calls per sample.", "N", reads="whole", least=1)] = None
    gates: Annotated[
        Sequence[str], Option("Such as 'params<50M'; repeatable.", "EXPR", flag="--gate", reads="texts")
    ] = ()
    output: Annotated[str | Path | None, Option("Results and caches; default beside it.", "DIR")] = None
    feature_weights: Annotated[str | Path | None, Option("The feature extractor's weights.", "PATH")] = None
    junit: Annotated[str | Path | None, Option("Gate results as JUnit XML.", "FILE")] = None
    seed: Annotated[int, Option(_SEED, reads="whole", least=0)] = 0
    device: Device = None
    scheduler: Scheduler = None

    def __post_init__(self) -> None:
        for name in ("num_samples", "sampler_steps"):
            if (value := getattr(self, name)) is not None and value < 1:
                told = f"--{name.replace('_', '-')} {value} is not a positive number"
                raise UsageError(told, "leave it out or use more")
        if self.interval is not None and not 0 < self.interval < 1:
            raise UsageError(
                f"--interval {self.interval:g} is not between 0 and 1: it is a share of the distance", "for example 5%"
            )
        if self.seed < 0:
            raise UsageError(f"--seed {self.seed} is negative", "use 0 or a positive number")


def hints_of(record: type, *, include_extras: bool = False) -> dict[str, Any]:
    """The types of a record's fields. Python 3.10 would refuse KW_ONLY, which is none."""
    return get_type_hints(record, localns={"KW_ONLY": type(KW_ONLY)}, include_extras=include_extras)


def options_of(record: type) -> dict[str, Option]:
    """How each field of a record of options is told, in order; what Python alone can ask for is left out."""
    hints = hints_of(record, include_extras=True)
    told = {field.name: get_args(hints[field.name])[1:] for field in fields(record)}
    return {name: more[0] for name, more in told.items() if more and isinstance(more[0], Option)}


def command(asked: Mapping[str, Any], *, recipe: str, output: str) -> str:
    """The shell command that repeats the run that `asked` (run.json) tells of, from its resolved `recipe` into the
    folder `output`."""
    parts = ["diffcompress", "shrink", str(asked.get("teacher"))]
    defaults = {field.name: field.default for field in fields(ShrinkOptions)}
    values = {name: asked.get(name) for name, one in options_of(ShrinkOptions).items() if one.kept or one.repeated}
    # Runs of early versions have the target's three beside the rest.
    values |= {name: (asked.get("target") or asked).get(name) for name in TARGETS}
    values |= {"recipe": recipe, "seed": seed_of(asked) or 0}
    for name, option in options_of(ShrinkOptions).items():
        if values.get(name) not in (None, defaults[name]):
            parts += [option.spelled(name), str(values[name])]
    return shlex.join([*parts, "--output", output])


def seed_of(asked: Mapping[str, Any]) -> int | None:
    """The seed of the run that `asked` (run.json) tells of."""
    recipe = asked.get("recipe")
    seed = recipe.get("seed") if isinstance(recipe, dict) else None
    return asked.get("seed") if seed is None else seed


def check_target(ratio: float | Sequence[float] | None, params: int | None, size: int | None) -> None:
    """Raise UsageError unless exactly one target is given and makes sense."""
    given = {"--ratio": ratio, "--params": params, "--size": size}
    named = [name for name, value in given.items() if value is not None]
    if len(named) != 1:
        told = f"{' and '.join(named)} are" if named else "nothing is"
        raise UsageError(
            f"exactly one of --ratio, --params and --size sets the target, but {told} given", "for example --ratio 0.05"
        )
    ratios = [ratio] if isinstance(ratio, (int, float)) else list(ratio or ())
    if ratio is not None and not ratios:
        raise UsageError("the list of ratios is empty", "for example --ratio 0.1,0.05")
    for value in ratios:
        if not (math.isfinite(value) and 0 < value < 1):
            raise UsageError(
                f"ratio {value:g} is not between 0 and 1: it is the share of the teacher's parameters that is kept",
                "for example 0.05 for a student of 5 %",
            )
    for name, number, example in (("--params", params, "40M"), ("--size", size, "80MB")):
        if number is not None and number <= 0:
            raise UsageError(f"{name} {number} is not a size", f"for example {name} {example}")


def known_dtype(text: str | None) -> str | None:
    """float16 or, as it is often called, fp16; raises UsageError for what is no dtype of weights."""
    text = SHORT_DTYPES.get(text or "", text)
    if text is not None and text not in DTYPES:
        raise UsageError(f"unknown dtype '{text}'", f"choose one of {', '.join(DTYPES)}{nearest(text, DTYPES)}")
    return text
