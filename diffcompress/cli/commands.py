"""The commands: options in, one job called, its result shown. Heavy imports stay inside, so that --help is quick."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

from diffcompress.cli import options
from diffcompress.cli.console import Output
from diffcompress.errors import ExitStatus
from diffcompress.records.record import plain
from diffcompress.records.request import EvaluateOptions, PlanOptions, ShrinkOptions

_MPI_RANKS = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


@options.taken_from(ShrinkOptions)
def shrink(console: Output, **given: Any) -> None:
    """Make a small student of TEACHER, or resume."""
    from diffcompress.cli import tables

    values = options.read(ShrinkOptions, given)
    asked = [ShrinkOptions(**values | {"ratio": ratio}) for ratio in values.get("ratio") or [None]]
    if "MASTER_ADDR" in os.environ and not any(name in os.environ for name in _MPI_RANKS):
        console.warn(
            "a launcher set MASTER_ADDR but started one process only; "
            "torchrun --nproc_per_node 2 -m diffcompress shrink ... starts two, "
            "and so does accelerate launch with --multi_gpu in place of --cpu"
        )
    if len(asked) > 1:
        from diffcompress.jobs.several import shrink_several

        results = shrink_several(asked, console)
        console.result(plain(results), *(line for result in results for line in (*tables.shrunk(result), "")))
        return
    from diffcompress.jobs.shrink import run

    result = run(asked[0], console)
    console.result(plain(result), *tables.shrunk(result))


@options.taken_from(PlanOptions)
def plan(console: Output, **given: Any) -> None:
    """What would be built, at what cost.

    Reads configs and safetensors headers, never weights.
    """
    from diffcompress.cli import tables

    values = options.read(PlanOptions, given)
    ratios = values.get("ratio")
    asked = PlanOptions(**values | {"ratio": ratios[0] if ratios and len(ratios) == 1 else ratios})
    from diffcompress.jobs.plan import run

    result = run(asked, console)
    rows = result if isinstance(result, list) else [result]
    around = tables.parts(rows)
    shown = [tables.planned(rows), "", *([] if around is None else [around, ""]), *tables.notes(rows)]
    console.result(plain(result), *shown)


@options.taken_from(EvaluateOptions)
def evaluate(console: Output, **given: Any) -> None:
    """Score a student against its teacher, or several against each other.

    And, with --data, against real images. Exits 3 when a gate is missed. A student may also be the evaluation.json of
    an earlier evaluation.
    """
    from diffcompress.cli import tables

    values = options.read(EvaluateOptions, given)
    first, *others = values["student"]
    alone = not others and not first.endswith(".json")
    asked = EvaluateOptions(**values | {"student": first if alone else values["student"]})
    from diffcompress.jobs.evaluate import run

    result = run(asked, console)
    results = result if isinstance(result, list) else [result]
    console.result(plain(result), *(tables.evaluated(results[0]) if alone else tables.compared(results)))
    missed = [(told.student.name, one) for told in results for one in told.gates if not one.passed]
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
    from diffcompress.cli import tables
    from diffcompress.jobs.report import report as redraw
    from diffcompress.records.report import Finding

    result = redraw(run)
    causes = tables.diagnosis(Finding.model_validate(one) for one in result.get("diagnosis", ()))
    console.result(result, f"report: {result.get('report', run)}", *causes)


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
