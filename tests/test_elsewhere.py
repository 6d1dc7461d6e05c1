"""Runs on a device without float64 and without pinned memory, as Apple's is."""

from __future__ import annotations

import pytest
import torch

import diffcompress
from diffcompress.pipeline import precision
from diffcompress.recipe import TrainingSection
from diffcompress.records.run_files import read_json
from diffcompress.runtime import environment
from diffcompress.training.optim import Optimizer
from tests import elsewhere, tiny
from tests.families import pipe_sd3


def test_the_stand_in_refuses_what_such_a_device_refuses(monkeypatch):
    with elsewhere.a_machine_with_one(monkeypatch, macos=13):
        layer = torch.nn.Linear(2, 2).to("mps")
        given = torch.ones(3, 2)
        with pytest.raises(RuntimeError, match="same device"):
            layer(given)
        said = layer(given.to("mps"))
        said.sum().backward()
        assert layer.weight.device.type == layer.weight.grad.device.type == "mps"
        assert said.cpu().device.type == "cpu" and type(said.cpu()) is torch.Tensor
        for refused in (said.double, lambda: said.to(torch.float64), said.bfloat16):
            with pytest.raises(TypeError, match=r"float64|BFloat16"):
                refused()
        with pytest.raises(NotImplementedError, match="solve"):
            torch.linalg.solve(torch.eye(2, device="mps"), said[:2])
        with pytest.raises(TypeError, match="numpy"):
            said.detach().numpy()
        with pytest.raises(RuntimeError, match="pin"):
            said.pin_memory()


@pytest.mark.parametrize("macos", [13, 15])
def test_a_student_is_made_where_there_is_no_float64(tmp_path, monkeypatch, macos):
    """Pixels, ranked by gradients; and, where there is no bfloat16 either, text encoders and latents."""
    if macos == 15:
        teacher, params = tiny.save_pipeline(tmp_path / "teacher"), 20_000
    else:
        teacher, params = tmp_path / "teacher", 49_416
        pipe_sd3.pipeline().save_pretrained(teacher)
    with elsewhere.a_machine_with_one(monkeypatch, macos):
        made = diffcompress.shrink(teacher, params=params, output=tmp_path / "run", overrides=tiny.SHORTEST)
    assert read_json(tmp_path / "run" / "export-proof.json")["passed"]
    assert read_json(tmp_path / "run" / "environment.json")["device"].startswith("mps")
    assert made["metrics"]["agreement"]["value"] < 1


def test_a_gradient_that_is_not_finite_changes_nothing_where_the_fused_update_does_not_look(monkeypatch):
    with elsewhere.a_machine_with_one(monkeypatch):
        model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4)).to("mps")
        before = [value.detach().cpu().clone() for value in model.parameters()]
        optimizer = Optimizer(model, TrainingSection())
        for value in model.parameters():
            value.grad = torch.full_like(value, torch.nan)
        optimizer.step(1e-2, torch.zeros((), dtype=torch.bool, device="mps"))
        for value, kept in zip(model.parameters(), before, strict=True):
            assert torch.equal(value.detach().cpu(), kept)


@pytest.mark.parametrize(("macos", "dtype"), [(13, torch.float32), (14, torch.bfloat16)])
def test_a_large_teacher_stays_in_bfloat16_where_the_device_has_it(monkeypatch, macos, dtype):
    with elsewhere.a_machine_with_one(monkeypatch, macos):
        assert precision.choose(torch.device("mps"), torch.bfloat16, precision.LARGE + 1) == dtype
        assert precision.choose(torch.device("mps"), torch.float16, precision.LARGE + 1) == torch.float16
        assert environment()["device"] == "mps"
