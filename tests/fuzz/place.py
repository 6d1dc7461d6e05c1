"""Where one input is tried: a folder to work in, what the command reads, and what it must never touch."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

SHORTEST = (
    "bank.num_samples=4", "bank.sampler_steps=2", "targets.pool_size=8", "stages.0.num_steps=2",
    "stages.1.num_steps=2", "training.batch_size=2", "training.warmup_steps=1", "evaluation.num_samples=2",
    "evaluation.sampler_steps=2",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One command. accepted: as soon as this exists the input was taken, and the command is asked to stop; seconds:
    those that it may take."""

    arguments: tuple[str, ...]
    accepted: Path | None = None
    seconds: float = 60.0


@dataclass(frozen=True)
class Place:
    """templates: whole teachers, images and a finished run, by name; work: the current directory of the command;
    inputs: what it reads; outside: what no input may reach."""

    root: Path
    templates: Path
    work: Path = field(init=False)
    inputs: Path = field(init=False)
    outside: Path = field(init=False)
    temporary: Path = field(init=False)

    def __post_init__(self) -> None:
        for name in ("work", "inputs", "outside", "temporary"):
            object.__setattr__(self, name, self.root / name)
            (self.root / name).mkdir(parents=True)
        (self.outside / "secret.txt").write_text("nobody's business")

    def take(self, name: str, into: str | None = None) -> Path:
        """A copy of a template among the inputs; of a run, in the working folder."""
        target = (self.work if name == "run" else self.inputs) / (into or name)
        return Path(shutil.copytree(self.templates / name, target, symlinks=True))

    def plan(self, teacher: Path | str, *more: str) -> Case:
        return Case(("plan", str(teacher), "--ratio", "0.4", *more))

    def shrink(self, teacher: Path | str, *more: str) -> Case:
        """A run that is stopped once it trains."""
        sets = [text for value in SHORTEST for text in ("--set", value)]
        arguments = ("shrink", str(teacher), "--ratio", "0.4", "--output", "out", "--device", "cpu", *sets, *more)
        return Case(arguments, self.work / "out" / "stage-1-lift")

    def either(self, random: Random, teacher: Path | str, *more: str) -> Case:
        """Mostly a plan, which is quick."""
        return (self.shrink if random.random() < 0.25 else self.plan)(teacher, *more)


def snapshot(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Kind, size and time of everything below."""
    found = {}
    for root, folders, files in os.walk(folder):
        for name in (*folders, *files):
            entry = os.path.join(root, name)
            stat = os.lstat(entry)
            size = 0 if os.path.isdir(entry) else stat.st_size
            found[os.path.relpath(entry, folder)] = (
                stat.st_mode,
                size,
                0 if os.path.isdir(entry) else stat.st_mtime_ns,
            )
    return found
