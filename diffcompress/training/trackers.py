"""Trackers of other makers, such as TensorBoard, through accelerate; the run folder stays the source."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from diffcompress.errors import UsageError
from diffcompress.recipe import Recipe
from diffcompress.records import fingerprints, layout
from diffcompress.records.run_identity import leaves
from diffcompress.runtime import Runtime

PROJECT = "diffcompress"


def check(names: Sequence[str]) -> None:
    """Raise UsageError for a tracker that accelerate does not know, or that is not installed."""
    if not names:
        return
    from accelerate.tracking import get_available_trackers
    from accelerate.utils import LoggerType

    known = [kind.value for kind in LoggerType if kind is not LoggerType.ALL]
    installed = [kind.value for kind in get_available_trackers()]
    for name in names:
        if name not in known:
            raise UsageError(f"training.trackers '{name}' is none that accelerate has", f"choose of {', '.join(known)}")
        if name not in installed:
            package = "tensorboardX" if name == "tensorboard" else name
            raise UsageError(f"training.trackers '{name}' is not installed", f"pip install {package}")


@contextlib.contextmanager
def following(runtime: Runtime, run: Path, recipe: Recipe) -> Iterator[None]:
    """What the accelerator logs goes to the trackers of `recipe`, too; a run that goes on goes on there.

    run: its folder. Raises UsageError for a tracker that does not start.
    """
    accelerator, names = runtime.accelerator, recipe.training.trackers
    if not names or not runtime.is_main:
        yield
        return
    accelerator.log_with = list(names)
    folder = run / layout.TRACKED
    accelerator.project_configuration.logging_dir = str(folder)
    same = {"name": run.name, "resume": "allow"}
    own = fingerprints.of_json([str(run.resolve())])[:16]
    try:
        folder.mkdir(exist_ok=True)
        accelerator.init_trackers(
            PROJECT,
            # They take numbers and texts, and nothing nested.
            config={
                name: value if isinstance(value, (int, float, str)) else str(value)
                for name, value in leaves(recipe.model_dump(mode="json")).items()
            },
            init_kwargs={"wandb": {**same, "id": own, "dir": str(folder)}, "trackio": same},
        )
    except Exception as error:
        accelerator.trackers = []
        raise UsageError(
            f"training.trackers {', '.join(names)} did not start: {type(error).__name__} {error}",
            "log in where it asks for that, or --set training.trackers=[]",
        ) from error
    try:
        yield
    finally:
        for tracker in accelerator.trackers:
            tracker.finish()
        accelerator.trackers = []
