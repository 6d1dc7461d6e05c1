"""`shrink --ratio 0.1,0.05,0.02`: several students from one bank and one target store, and one page for all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffcompress.errors import DoesNotFitError, UsageError
from diffcompress.jobs.compare import compare
from diffcompress.jobs.shrink import shrink
from diffcompress.records.run_folder import RunFolder
from diffcompress.report.overview import write_overview
from diffcompress.runtime import Progress
from diffcompress.sources.resolve import resolve


def shrink_several(
    teacher: str,
    ratios: Sequence[float],
    *,
    output: str | None = None,
    push_to_hub: str | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> list[dict[str, Any]]:
    """One result of `shrink` for each of `ratios`, in order; `options` are those of `shrink`.

    `output` (default `./<teacher>-several`) holds a run folder for each ratio, what they share, and overview.html. The
    same call again resumes. Raises UsageError for equal ratios or a push, which is for one student; whatever `shrink`
    raises ends the call, and finished students stay.
    """
    progress = progress or Progress()
    if push_to_hub is not None:
        raise UsageError(f"--push-to-hub {push_to_hub} with several ratios", "push the student that you choose")
    names = [f"{ratio:.4g}" for ratio in ratios]
    if len(set(names)) < len(names):
        raise UsageError(f"--ratio {','.join(names)} names one ratio twice", "name each ratio once")
    folder = Path(output or f"./{resolve(teacher, options.get('scheduler')).name}-several")
    results, unreachable = [], []
    for ratio, name in zip(ratios, names, strict=True):
        progress.note(f"student of ratio {name}")
        place = str(folder / name)
        try:
            results.append(shrink(teacher, ratio=ratio, output=place, shared=folder, progress=progress, **options))
        except DoesNotFitError as error:
            unreachable.append(error)
            progress.warn(f"ratio {name} is left out: {error.message}")
    if not results:
        raise unreachable[0]
    runs = [RunFolder(result["run"]) for result in results]
    if len(runs) > 1:
        compare([str(run.metrics) for run in runs], output=folder, device=options.get("device"), progress=progress)
    write_overview(folder, runs)
    return results
