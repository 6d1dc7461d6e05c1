"""Whole runs of teachers that memory does not hold, beside those of the same weights where it does."""

from __future__ import annotations

import json
import types
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

import diffcompress
from diffcompress.records.run_folder import RunFolder
from tests import tiny
from tests.families import pipe_flux, pipe_sd3
from tests.jobs.tiny_teacher import save_teacher
from tests.telling import Told

SHORT = (*tiny.SHORTEST, "training.micro_batch_size=1", "training.recompute=false")
LITTLE = 1000


def unet(folder: Path) -> str:
    save_teacher(folder, dtype=torch.bfloat16)
    return "unet"


def mmdit(folder: Path) -> str:
    pipe_sd3.pipeline().to(torch.bfloat16).save_pretrained(folder)
    return "transformer"


def flux(folder: Path) -> str:
    pipe_flux.pipeline().to(torch.bfloat16).save_pretrained(folder)
    return "transformer"


@pytest.mark.parametrize(
    ("save", "ratio", "more"),
    [
        (unet, 0.4, ("student.importance=taylor",)),
        pytest.param(
            mmdit,
            0.4247,
            ("student.importance=magnitude", "stages.1.weights.feature_kd=1", "bank.sample_size=8"),
            marks=pytest.mark.slow,
        ),
        pytest.param(flux, 0.5, ("student.importance=magnitude", "bank.sample_size=8"), marks=pytest.mark.slow),
    ],
)
def test_a_teacher_that_memory_does_not_hold_has_the_same_student(tmp_path, monkeypatch, save, ratio, more):
    """Once all memory is free when it is loaded and next to nothing thereafter, once from the beginning."""
    part, heard, banks, students = save(tmp_path / "teacher"), Told(), [], []
    for name, first in (("whole", 2**40), ("placed", LITTLE)):
        run, free = RunFolder(tmp_path / name), iter([first])
        monkeypatch.setattr(
            psutil, "virtual_memory", lambda free=free: types.SimpleNamespace(available=next(free, LITTLE))
        )
        asked = more if name == "placed" else (*more, "student.importance=magnitude")
        diffcompress.shrink(
            str(tmp_path / "teacher"), ratio=ratio, output=str(run.path), overrides=(*SHORT, *asked), progress=heard
        )
        banks.append(load_file(next(run.bank.glob("*.safetensors"))))
        students.append(load_file(next((run.pipeline / part).glob("*.safetensors"))))
    for one, other in (banks, students):
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    little = [note for note in heard.notes if "does not fit in 1,000 B of free memory" in note]
    told = [note for note in little if not note.startswith("the text_encoder")]
    assert (len(little) > len(told)) == (part == "transformer")  # encoders stay in their files, too
    assert len(told) == 1 and told[0].endswith("its layers stay on disk and are read for each call")
    assert told[0] in json.loads((run.path / "report.json").read_text())["plan"]["notes"]
    ranked = [text for text in heard.warnings if "ranked by magnitude" in text]
    assert len(ranked) == ("student.importance=taylor" in more)
