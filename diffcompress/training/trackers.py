"""Trackers of other makers, such as TensorBoard, through accelerate; the run folder stays the source."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from diffcompress.errors import UsageError
from diffcompress.recipe import Recipe
from diffcompress.records import fingerprints, layout
from diffcompress.runtime import Runtime

PROJECT = "diffcompress"


def check(names: Sequence[str]) -> None:
    """Raise UsageError for a tracker that accelerate does not know, or that is not installed."""
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
    accelerator.project_configuration.set_directories(str(run / layout.TRACKED))
    accelerator.project_configuration.logging_dir = str(run / layout.TRACKED)
    same = {"name": run.name, "resume": "allow"}
    own = fingerprints.of_json([str(run.resolve())])[:16]
    try:
        (run / layout.TRACKED).mkdir(exist_ok=True)
        accelerator.init_trackers(
            PROJECT,
            config=_flat(recipe.model_dump(mode="json")),
            init_kwargs={"wandb": {**same, "id": own, "dir": str(run / layout.TRACKED)}, "trackio": same},
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


def _flat(values: Any, path: str = "") -> dict[str, Any]:
    """Numbers and texts by their paths: trackers take nothing nested."""
    if not isinstance(values, (dict, list)):
        return {path: values if isinstance(values, (int, float, str, bool)) else str(values)}
    inner = values.items() if isinstance(values, dict) else enumerate(values)
    parts = (_flat(value, f"{path}.{name}" if path else str(name)) for name, value in inner)
    return {name: value for part in parts for name, value in part.items()}
