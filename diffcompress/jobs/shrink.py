"""`shrink`: the whole story, one call for each step: plan, bank, inherit, train, evaluate, export, report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffcompress import recipe as recipes
from diffcompress.families import registry
from diffcompress.jobs import target
from diffcompress.jobs.answer import answer, result
from diffcompress.jobs.request import Request
from diffcompress.runtime import Progress
from diffcompress.sources.resolve import resolve


def shrink(
    teacher: str | Path,
    *,
    ratio: float | None = None,
    params: int | None = None,
    size: int | None = None,
    output: str | Path | None = None,
    overwrite: bool = False,
    data: str | Path | None = None,
    prompts: str | None = None,
    method: str = "lift-place",
    max_time: float | None = None,
    recipe: str | None = None,
    overrides: tuple[str, ...] = (),
    seed: int | None = None,
    device: str | None = None,
    dtype: str | None = None,
    license: str | None = None,
    scheduler: str | None = None,
    push_to_hub: str | None = None,
    public: bool = False,
    shared: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Compress `teacher` and return what `shrink --json` prints. The same call again resumes.

    Exactly one of ratio (0 < ratio < 1), params (a count) and size (bytes of the exported denoiser) sets the target;
    max_time is in seconds of training; push_to_hub (owner/name) is pushed to in the end, private unless `public`.
    seed: in place of the recipe's. shared: see RunFolder. Raises DiffCompressError subclasses, each with its exit
    status.
    """
    progress = progress or Progress()
    target.check(ratio, params, size)
    target.check_time(max_time)
    reference = resolve(str(teacher), scheduler)
    data = None if data is None else str(data)
    recipe = recipe or recipes.default_for(reference.id, registry.find(reference.class_name).recipe)
    request = Request(
        reference=reference, target={"ratio": ratio, "params": params, "size": size}, recipe_name=recipe,
        recipe=recipes.load(recipe, tuple(overrides), method, seed=seed), method=method, data=data,
        prompts=prompts, dtype=target.dtype(dtype), scheduler=scheduler, output=output, shared=shared,
        overwrite=overwrite, max_time=max_time, device=device, license=license, push_to_hub=push_to_hub, public=public,
    )  # fmt: skip
    found = answer(request, progress)
    if found is None:
        for doubt in recipes.doubts(recipe, reference.class_name):
            progress.warn(doubt)
        return _make(request, progress)
    progress.note(f"the run in {found['run']} is finished, nothing was left to do")
    return found


def _make(request: Request, progress: Progress) -> dict[str, Any]:
    """Every step of the run that is not done yet. Its imports take seconds, which a finished run does without."""
    from diffcompress.bank import bank as banks
    from diffcompress.jobs.deliver import conclude
    from diffcompress.jobs.estimate import estimate
    from diffcompress.jobs.run import opened
    from diffcompress.jobs.train import starting_student, train

    with opened(request, progress) as run:
        folder, runtime, asked = run.folder, run.runtime, request.recipe
        if request.max_time is not None and runtime.is_main and not folder.recipe.exists():
            progress.note(estimate(run))
        with run.timed("bank"):
            bank = banks.fill(folder.bank, run.teacher, asked.bank, asked.seed, run.own, runtime, progress)
        with run.timed("student-init"):
            start = starting_student(run, bank)
        recipe, trained = train(run, start, bank)
        if runtime.is_main:
            conclude(run, recipe, start, trained, bank)
        runtime.wait()
        return result(folder)
