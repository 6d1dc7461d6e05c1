"""The commands: options in, one job called, its result shown. Heavy imports stay inside, so that --help is quick."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

from diffcompress.cli.console import Output
from diffcompress.errors import ExitStatus

_TEACHER = "demo, a Hub id (owner/name[@revision]), a diffusers folder, or a .safetensors checkpoint."
_MPI_RANKS = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")

Teacher = Annotated[str, typer.Argument(help=_TEACHER, show_default=False)]
Params = Annotated[str | None, typer.Option(metavar="N", help="Target as student denoiser parameters: 40M.")]
Size = Annotated[str | None, typer.Option(metavar="BYTES", help="Target as size of the denoiser file: 80MB.")]
Data = Annotated[
    str | None, typer.Option(metavar="PATH", help="Image folder or Hub data set; default: the teacher's samples.")
]
Prompts = Annotated[str | None, typer.Option(metavar="FILE", help="One prompt a line, for text-conditional teachers.")]
_SEED = "Same seed, same machine, same result."
Seed = Annotated[int, typer.Option(min=0, help=_SEED)]
RecipeSeed = Annotated[int | None, typer.Option(min=0, help=_SEED, show_default="the recipe's, 0 unless it says so")]
Device = Annotated[str | None, typer.Option(help="Default: cuda, else mps, else cpu.")]
Scheduler = Annotated[str | None, typer.Option(metavar="PATH", help="Scheduler config of a denoiser folder.")]
RecipeName = Annotated[
    str | None,
    typer.Option(metavar="NAME_OR_FILE", help="A built-in recipe or a YAML file.", show_default="fits the teacher"),
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="One recipe value; repeatable.")
]
Dtype = Annotated[str | None, typer.Option(metavar="D", help="Of the exported weights; default: the teacher's.")]


def shrink(
    console: Output,
    teacher: Teacher,
    ratio: Annotated[
        str | None,
        typer.Option(metavar="R", help="Share of the teacher's parameters to keep; several: one student each."),
    ] = None,
    params: Params = None,
    size: Size = None,
    output: Annotated[str | None, typer.Option(metavar="DIR", help="Run folder; default ./<teacher>-<ratio>.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what the run folder holds.")] = False,
    data: Data = None,
    prompts: Prompts = None,
    method: Annotated[str, typer.Option(metavar="M", help="lift-place, output-kd, feature-kd or none.")] = "lift-place",
    max_time: Annotated[str | None, typer.Option(metavar="T", help="Training time: 90s, 30m, 8h.")] = None,
    recipe: RecipeName = None,
    set_: Overrides = None,
    seed: RecipeSeed = None,
    device: Device = None,
    push_to_hub: Annotated[
        str | None, typer.Option(metavar="REPO", help="Push the finished student to owner/name on the Hub; private.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="With --push-to-hub: public instead.")] = False,
    license: Annotated[
        str | None, typer.Option(metavar="ID", help="For the card when the teacher's is unknown.")
    ] = None,
    dtype: Dtype = None,
    scheduler: Scheduler = None,
) -> None:
    """Make a small student of TEACHER, or resume."""
    from diffcompress.cli import options, tables
    from diffcompress.jobs import target

    options.check_push(push_to_hub, public)
    ratios, count, limit = options.ratios(ratio), options.params(params), options.size(size)
    target.check(ratios, count, limit)
    method, dtype, data = options.method(method), target.dtype(dtype), options.data(data)
    budget = options.seconds(max_time)
    if "MASTER_ADDR" in os.environ and not any(name in os.environ for name in _MPI_RANKS):
        console.warn(
            "a launcher set MASTER_ADDR but started one process only; "
            "torchrun --nproc_per_node 2 -m diffcompress shrink ... starts two, "
            "and so does accelerate launch with --multi_gpu in place of --cpu"
        )
    asked: dict[str, Any] = {
        "output": output, "overwrite": overwrite, "data": data, "prompts": prompts, "method": method,
        "max_time": budget, "recipe": recipe, "overrides": tuple(set_ or ()), "seed": seed, "device": device,
        "dtype": dtype, "license": license, "scheduler": scheduler, "push_to_hub": push_to_hub, "public": public,
        "progress": console,
    }  # fmt: skip
    if ratios is not None and len(ratios) > 1:
        from diffcompress.jobs.several import shrink_several

        results = shrink_several(teacher, ratios, **asked)
        console.result(results, *(line for result in results for line in (*tables.shrunk(result), "")))
        return
    from diffcompress.jobs.shrink import shrink as run

    result = run(teacher, ratio=ratios[0] if ratios else None, params=count, size=limit, **asked)
    console.result(result, *tables.shrunk(result))


def plan(
    console: Output,
    teacher: Teacher,
    ratio: Annotated[str | None, typer.Option(metavar="R[,R2,...]", help="Shares of the teacher's parameters.")] = None,
    params: Params = None,
    size: Size = None,
    recipe: RecipeName = None,
    set_: Overrides = None,
    dtype: Dtype = None,
    scheduler: Scheduler = None,
) -> None:
    """What would be built, at what cost.

    Reads configs and safetensors headers, never weights.
    """
    from diffcompress.cli import options, tables
    from diffcompress.jobs import target

    ratios = options.ratios(ratio)
    count, limit = options.params(params), options.size(size)
    target.check(ratios, count, limit)
    asked = ratios[0] if ratios and len(ratios) == 1 else ratios
    dtype = target.dtype(dtype)
    from diffcompress.jobs.plan import plan as run

    result = run(
        teacher, ratio=asked, params=count, size=limit, recipe=recipe, overrides=tuple(set_ or ()),
        scheduler=scheduler, dtype=dtype, progress=console,
    )  # fmt: skip
    rows = result if isinstance(result, list) else [result]
    console.result(result, tables.planned(rows), *tables.notes(rows))


def evaluate(
    console: Output,
    student: Annotated[
        list[str], typer.Argument(help="A pipeline such as RUN/pipeline; several are compared.", show_default=False)
    ],
    teacher: Annotated[str | None, typer.Option(metavar="T", help="Its teacher: " + _TEACHER)] = None,
    data: Data = None,
    prompts: Prompts = None,
    num_samples: Annotated[int | None, typer.Option(min=2, metavar="N", help="Samples to score.")] = None,
    sampler_steps: Annotated[int | None, typer.Option(min=1, metavar="N", help="Denoiser calls per sample.")] = None,
    gate: Annotated[list[str] | None, typer.Option(metavar="EXPR", help="Such as 'params<50M'; repeatable.")] = None,
    output: Annotated[str | None, typer.Option(metavar="DIR", help="Results and caches; default beside it.")] = None,
    feature_weights: Annotated[
        str | None, typer.Option(metavar="PATH", help="The feature extractor's weights.")
    ] = None,
    junit: Annotated[str | None, typer.Option(metavar="FILE", help="Gate results as JUnit XML.")] = None,
    seed: Seed = 0,
    device: Device = None,
    scheduler: Scheduler = None,
) -> None:
    """Score a student against its teacher, or several against each other.

    And, with --data, against real images. Exits 3 when a gate is missed. A student may also be the evaluation.json of
    an earlier evaluation.
    """
    from diffcompress.cli import options, tables

    data = options.data(data)
    asked: dict[str, Any] = {
        "teacher": teacher, "data": data, "num_samples": num_samples, "sampler_steps": sampler_steps,
        "gates": tuple(gate or ()), "output": output, "feature_weights": feature_weights, "junit": junit, "seed": seed,
        "device": device, "scheduler": scheduler, "prompts": prompts, "progress": console,
    }  # fmt: skip
    if len(student) == 1 and not student[0].endswith(".json"):
        from diffcompress.jobs.evaluate import evaluate as run

        result = run(student[0], **asked)
        results = [result]
        console.result(result, *tables.evaluated(result))
    else:
        from diffcompress.jobs.compare import compare

        results = compare(student, **asked)
        console.result(results, *tables.compared(results))
    missed = [(told["student"]["name"], one) for told in results for one in told["gates"] if not one["passed"]]
    for name, miss in missed:
        whose = f" by {name}" if len(results) > 1 else ""
        console.error(f"gate missed{whose}: {tables.verdict(miss)}")
    if missed:
        raise typer.Exit(int(ExitStatus.GATE_FAILED))


def report(
    console: Output,
    run: Annotated[str, typer.Argument(help="A run folder that shrink made.", show_default=False)],
) -> None:
    """Redraw the report of a run folder."""
    from diffcompress.jobs.report import report as redraw

    result = redraw(run)
    console.result(result, f"report: {result.get('report', run)}")


def list_recipes(console: Output) -> None:
    """Names and purposes of the built-in recipes."""
    from diffcompress import recipe as recipes

    found = {name: recipes.load(name).description for name in recipes.builtin_names()}
    width = max(map(len, found))
    listed = [{"name": name, "description": text} for name, text in found.items()]
    console.result(listed, *(f"{name:<{width}}  {text}" for name, text in found.items()))


def show_recipe(
    console: Output,
    name: Annotated[str, typer.Argument(metavar="NAME", help="A built-in recipe or a YAML file.", show_default=False)],
) -> None:
    """Every value of a recipe, as YAML with its meaning; a file to start from."""
    from diffcompress import recipe as recipes
    from diffcompress.cli import tables

    loaded = recipes.load(name)
    console.result(loaded.model_dump(mode="json"), "\n".join(tables.annotated(loaded)))


def env(console: Output) -> None:
    """Versions and devices, for a bug report."""
    from diffcompress.recipe import builtin_names
    from diffcompress.runtime import environment
    from diffcompress.sources.reference import demo_names

    facts = environment() | {
        "offline": os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"),
        "demo_teachers": demo_names(),
        "recipes": builtin_names(),
    }
    width = max(map(len, facts))
    shown = {name: ", ".join(value) if isinstance(value, list) else value for name, value in facts.items()}
    console.result(facts, *(f"{name:<{width}}  {value}" for name, value in shown.items()))
