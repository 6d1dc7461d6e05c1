"""What is logged reaches TensorBoard's files, one value a logged step; trackers that are not there."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from diffcompress.errors import UsageError
from diffcompress.recipe import Recipe, TrainingSection
from diffcompress.runtime import start
from diffcompress.training import trackers
from tests.cli.command import run
from tests.jobs.tiny_teacher import save_teacher, settings


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) by name, of all TensorBoard files below a folder: length, its checksum, event, its checksum."""
    found: dict[str, list[tuple[int, float]]] = {}
    for file in sorted(folder.rglob("events.out.*")):
        content = file.read_bytes()
        while content:
            length = int.from_bytes(content[:8], "little")
            told = content[12 : 12 + length]
            assert int.from_bytes(content[12 + length : 16 + length], "little") == masked_crc32c(told)
            event = Event.FromString(told)
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
            content = content[16 + length :]
    return found


def test_a_run_is_followed_and_is_the_same_run_with_and_without(tmp_path: Path) -> None:
    teacher = save_teacher(tmp_path / "teacher")
    asked = ("shrink", teacher, "--ratio", "0.3", "--output", tmp_path / "run", *settings())
    followed = run(*asked, "--set", "training.trackers=[tensorboard]")
    assert followed.code == 0, followed.stderr
    found = scalars(tmp_path / "run" / "trackers")
    rows = [
        json.loads(line)
        for stage in ("stage-1-lift", "stage-2-place")
        for line in (tmp_path / "run" / stage / "metrics.jsonl").read_text().splitlines()
    ]
    assert len(rows) == 30
    assert found["loss"] == [(row["step"], pytest.approx(row["loss"], rel=1e-5)) for row in rows]
    assert {"coarse", "fine", "slope", "learning_rate", "grad_norm"} <= set(found)
    assert "is finished" in run(*asked).stderr


def test_a_tracker_that_is_not_there_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    teacher = save_teacher(tmp_path / "teacher")
    asked = ("shrink", teacher, "--ratio", "0.3", "--output", tmp_path / "run", *settings())
    unknown = run(*asked, "--set", "training.trackers=[notebook]")
    assert (unknown.code, "'notebook' is none that accelerate has" in unknown.stderr) == (2, True)
    assert not (tmp_path / "run").exists()
    if importlib.util.find_spec("comet_ml") is None:
        with pytest.raises(UsageError, match="'comet_ml' is not installed") as caught:
            trackers.check(["comet_ml"])
        assert caught.value.hint == "pip install comet_ml"


def test_a_tracker_that_does_not_start_is_told(tmp_path: Path) -> None:
    (tmp_path / "trackers").write_text("in the way")
    recipe = Recipe(training=TrainingSection(trackers=("tensorboard",)))
    with pytest.raises(UsageError, match="tensorboard did not start"):
        with trackers.following(start("cpu"), tmp_path, recipe):
            raise AssertionError
