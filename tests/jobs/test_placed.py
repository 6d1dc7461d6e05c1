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
from diffcompress.pipeline import placing
from diffcompress.pipeline.load import LoadedPipeline
from diffcompress.records.run_folder import RunFolder
from diffcompress.sources.resolve import resolve
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


def test_a_teacher_that_leaves_while_its_student_trains_has_the_same_student(tmp_path, monkeypatch):
    """On a device that holds it, and not both: it is asked for its samples, leaves, and comes back to be compared with.
    Its stored calls are few, and used more often."""
    mmdit(tmp_path / "teacher")
    asked: list[int] = []
    left, students = [], {}
    leave, predict = placing.leave, LoadedPipeline.predict_all

    def leaving(model, device):
        left.append(device)
        leave(model, device)

    def counted(pipeline, noisy, *rest):
        asked.append(len(left)) if pipeline.reference.config == teacher else None
        return predict(pipeline, noisy, *rest)

    teacher = resolve(str(tmp_path / "teacher")).config
    monkeypatch.setattr(placing, "leave", leaving)
    monkeypatch.setattr(LoadedPipeline, "predict_all", counted)
    more = ("student.importance=magnitude", "bank.sample_size=8", "targets.reuse=3")
    for parted in (False, True):
        heard, run = Told(), RunFolder(tmp_path / f"parted-{parted}")
        if parted:
            # The device says that both do not fit, and that the teacher with its calls does.
            monkeypatch.setattr(placing, "rooms", lambda *given: None if given[4].__name__ == "encoding_alone" else {})
            monkeypatch.setattr(placing, "may_leave", lambda _weights, _device: True)
        diffcompress.shrink(
            str(tmp_path / "teacher"), ratio=0.4247, output=str(run.path), overrides=(*SHORT, *more), progress=heard
        )
        students[parted] = load_file(next((run.pipeline / "transformer").glob("*.safetensors")))
        assert any("leaves cpu while its student trains" in note for note in heard.notes) == parted
        assert bool(left) == parted
    assert students[True].keys() == students[False].keys()
    assert all(torch.isfinite(value).all() for value in students[True].values())
    assert 1 not in asked  # before more samples are drawn
    assert {0, len(left)} <= set(asked)
