"""`shrink --ratio 0.1,0.05,0.02`: several students from one bank and one target store, and one page for all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from diffcompress import recipe as recipes
from diffcompress.errors import DoesNotFitError, UsageError
from diffcompress.families import registry
from diffcompress.jobs import evaluate, plan
from diffcompress.jobs.shrink import run
from diffcompress.records.report import Shrunk
from diffcompress.records.request import ShrinkOptions
from diffcompress.records.run_folder import RunFolder
from diffcompress.report.overview import write_overview
from diffcompress.runtime import Progress
from diffcompress.sources.reference import Reference
from diffcompress.sources.resolve import resolve


def shrink_several(each: Sequence[ShrinkOptions], progress: Progress) -> list[Shrunk]:
    """One result of `shrink` for each of what is asked for, in order: the same but for the ratio.

    Its output (default `./<teacher>-several`) holds a run folder for each ratio, what they share, and overview.html.
    The same call again resumes. Raises UsageError for equal ratios or a push, which is for one student; whatever
    `shrink` raises ends the call, and finished students stay.
    """
    asked = each[0]
    if asked.push_to_hub is not None:
        raise UsageError(f"--push-to-hub {asked.push_to_hub} with several ratios", "push the student that you choose")
    names = [f"{one.ratio:.4g}" for one in each]
    if len(set(names)) < len(names):
        raise UsageError(f"--ratio {','.join(names)} names one ratio twice", "name each ratio once")
    reference = resolve(str(asked.teacher), asked.scheduler)
    folder = Path(asked.output or f"./{reference.name}-several")
    _check_shapes(each, reference, progress)
    results, unreachable = [], []
    for one, name in zip(each, names, strict=True):
        progress.note(f"student of ratio {name}")
        try:
            results.append(run(replace(one, output=folder / name, shared=folder), progress))
        except DoesNotFitError as error:
            unreachable.append(error)
            progress.warn(f"ratio {name} is left out: {error.message}")
    if not results:
        raise unreachable[0]
    runs = [RunFolder(result.run) for result in results]
    if len(runs) > 1:
        measured = [run.metrics for run in runs]
        evaluate(measured, output=folder, device=asked.device, progress=progress)
    write_overview(folder, runs)
    return results


def _check_shapes(each: Sequence[ShrinkOptions], reference: Reference, progress: Progress) -> None:
    """Raise UsageError for a student whose shape an export cannot say now, and not when those before it are made."""
    asked = each[0]
    name = asked.recipe or recipes.default_for(reference.id, registry.find(reference.class_name).recipe)
    export = recipes.load(name, tuple(asked.overrides)).export
    if export.original or export.gguf:
        ratios = [one.ratio for one in each if one.ratio is not None]
        same = {key: getattr(asked, key) for key in ("recipe", "overrides", "dtype", "scheduler")}
        plan(asked.teacher, ratio=ratios, progress=progress, **same)
