"""A finished run with one file damaged: asked for again, reported, evaluated, compared."""

from __future__ import annotations

from pathlib import Path
from random import Random

from tests.fuzz import odd
from tests.fuzz.place import SHORTEST, Case, Place


def make(random: Random, place: Place) -> Case:
    run = place.take("run")
    files = sorted(file for file in run.rglob("*") if file.is_file() and file.name != ".lock")
    for file in random.sample(files, random.choice((1, 1, 1, 2))):
        odd.damage(random, file)
    kind = random.randrange(10)
    if kind <= 3:
        return Case(("report", str(run)))
    if kind <= 5:
        return Case(again(place.templates / "ddpm", run), seconds=300.0)  # it may make all of it again
    if kind == 6:
        return Case(("evaluate", str(run / "metrics.json"), "--output", "out"))
    if kind == 7:
        return Case(("plan", str(run / "pipeline"), "--ratio", "0.5"))
    if kind == 8:
        return Case(("evaluate", str(run / "metrics.json"), str(run / "report.json"), "--output", "out"))
    return Case(
        ("evaluate", str(run / "pipeline"), "--output", "out", "--num-samples", "2"), place.work / "out" / "cache"
    )


def again(teacher: Path, run: Path) -> tuple[str, ...]:
    """The command that made the run."""
    sets = [text for value in SHORTEST for text in ("--set", value)]
    return ("shrink", str(teacher), "--ratio", "0.4", "--output", str(run), "--device", "cpu", *sets)
