"""Checkpoints: tensors to safetensors, counters to JSON, whole folders moved into place. No pickles."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffcompress.records import layout, shapes
from diffcompress.records.run_files import (
    damaged,
    discard,
    kept,
    read_header,
    read_json,
    read_tensors,
    write_atomically,
    write_json,
    write_tensors,
)
from diffcompress.training.ema import Ema
from diffcompress.training.optim import Optimizer
from diffcompress.training.sharding import Sharding


@dataclass
class Counters:
    """step: optimizer steps taken over all stages; skipped, rollbacks: what the guard rails did; learning_rate_scale
    halves at every rollback; seconds: training time of the stage so far."""

    step: int = 0
    skipped: int = 0
    rollbacks: int = 0
    learning_rate_scale: float = 1.0
    seconds: float = 0.0


class TrainingState:
    """Everything that the next step depends on, and where it is kept."""

    def __init__(self, model: nn.Module, ema: Ema, optimizer: Optimizer, sharding: Sharding | None = None) -> None:
        """`model`: all that is trained (student and adapters), not wrapped. sharding: that of `ema` and `optimizer`."""
        self.model, self.ema, self.optimizer, self.sharding = model, ema, optimizer, sharding
        self.counters = Counters()

    def averages(self, *, keep: bool = True) -> Mapping[str, Tensor]:
        """The averaged weights by their names. Where they are shared out, all processes call it, and those that do not
        `keep` get none."""
        return self._whole(self.ema.tensors, keep)

    def tensors(self, *, keep: bool = True) -> dict[str, Tensor]:
        """All that a checkpoint holds, as `averages`."""
        own = {f"ema.{name}": value for name, value in self.ema.tensors.items()}
        own |= {f"optimizer.{name}": value for name, value in self.optimizer.tensors().items()}
        return {f"model.{name}": value for name, value in self.model.state_dict().items()} | self._whole(own, keep)

    def _whole(self, own: dict[str, Tensor], keep: bool) -> dict[str, Tensor]:
        return own if self.sharding is None else self.sharding.gathered(own, keep=keep)

    def write(self, folder: Path, tensors: Mapping[str, Tensor]) -> None:
        """A checkpoint of `tensors`; all or nothing. Raises RunStopped when the disk is full."""

        def write(part: Path) -> None:
            part.mkdir()
            # Once more beside the tensors, under their checksum: these count, the file is for people.
            write_tensors(part / layout.STATE, tensors, {"counters": json.dumps(asdict(self.counters))})
            write_json(part / layout.COUNTERS, asdict(self.counters))

        write_atomically(folder, write)

    def load(self, folder: Path) -> None:
        """Take up a checkpoint; raises DamagedError for one that is broken, or of another model."""
        file = folder / layout.STATE
        try:
            told = read_header(file)
            tensors = read_tensors(file, finite="counters" not in told)  # else a checksum says that it is as it was
            averages = _below(tensors, "ema")
            if {name: value.shape for name, value in averages.items()} != self.ema.shapes:
                raise damaged(file, "its averaged weights are those of another model")
            self.model.load_state_dict(_below(tensors, "model"))
            self.optimizer.load(_below(tensors, "optimizer"))
            self.counters = Counters(**counters(folder))
        except torch.OutOfMemoryError:
            raise
        except (FileNotFoundError, RuntimeError, ValueError, KeyError, TypeError) as error:
            raise damaged(file, str(error)) from error
        for name, value in self.ema.tensors.items():
            value.copy_(averages[name])  # which keeps its order in memory: that of the weight


def counters(checkpoint: Path) -> dict[str, Any]:
    """The counters of a checkpoint; raises DamagedError, and FileNotFoundError where there is none."""
    told = read_header(checkpoint / layout.STATE).get("counters")
    if told is None:  # an earlier version's
        return dict(read_json(checkpoint / layout.COUNTERS, kind=shapes.Counted))
    return dict(json.loads(told))


class Checkpoints:
    """Checkpoints of one stage: `checkpoints/step-*`, the newest alone kept, and `final` when the stage is done.

    writes: whether this process writes them. All processes call what does, as each may keep a part of what they hold.
    """

    def __init__(self, stage_folder: Path, *, writes: bool = True) -> None:
        self.folder = stage_folder / layout.CHECKPOINTS
        self.final, self.writes = stage_folder / layout.FINAL, writes

    @property
    def latest(self) -> Path | None:
        found = sorted(path for path in self.folder.glob(f"{layout.STEP}*") if path.suffix == "")
        return self.final if self.final.is_dir() else found[-1] if found else None

    def save(self, state: TrainingState) -> None:
        target = self.folder / layout.checkpoint(state.counters.step)
        self._write(state, target)
        self._keep(target)

    def finish(self, state: TrainingState) -> None:
        self._write(state, self.final)
        self._keep(None)

    def _write(self, state: TrainingState, target: Path) -> None:
        tensors = state.tensors(keep=self.writes)
        if self.writes:
            state.write(target, tensors)

    @property
    def final_step(self) -> int:
        """The step that a finished stage ended with."""
        return int(counters(self.final)["step"])

    def mend(self, warn: Callable[[str], None]) -> None:
        """Write the counters of the latest checkpoint again, where their file is not what its tensors tell."""
        if self.latest is None or not self.writes:
            return
        told = counters(self.latest)
        found = kept(self.latest / layout.COUNTERS, partial(read_json, kind=shapes.Counted), warn)
        if found != told:
            write_json(self.latest / layout.COUNTERS, told)

    def reopen(self) -> None:
        """Turn a finished stage into one that goes on from its last step."""
        if not self.writes:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self.final.rename(self.folder / layout.checkpoint(self.final_step))

    def _keep(self, newest: Path | None) -> None:
        if not self.writes:
            return
        for path in self.folder.glob(f"{layout.STEP}*"):
            if path != newest:
                discard(path)


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key[len(prefix) + 1 :]: value for key, value in tensors.items() if key.startswith(prefix + ".")}
