"""A student that is compiled trains as one that is not; where it cannot be compiled a run says so and goes on."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DModel

import diffcompress
from diffcompress.families import registry
from diffcompress.records.run_folder import RunFolder, read_recipe
from diffcompress.training import compiling
from diffcompress.training.objective import Trainee
from tests import tiny
from tests.jobs.tiny_teacher import environment, same, save_teacher, weights
from tests.telling import Told

BLOCKS = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (8,)}
UNET = {**tiny.UNET, **BLOCKS, "layers_per_block": 1, "attention_head_dim": 8, "norm_num_groups": 2}


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    yield
    torch.compiler.reset()


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_teacher(tmp_path_factory.mktemp("compiling") / "teacher")


@pytest.fixture(scope="module")
def plain(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shrink(teacher, tmp_path_factory.mktemp("plain") / "run", Told())


def shrink(teacher: Path, output: Path, told: Told, *sets: str) -> Path:
    overrides = (*tiny.SHORTEST, *sets)
    diffcompress.shrink(str(teacher), ratio=0.3, output=output, overrides=overrides, progress=told)
    return output


def small_unet() -> UNet2DModel:
    return tiny.unet(UNET).train().requires_grad_(True)


def fail(told: str) -> None:
    raise RuntimeError(told)


def compiles(folder: Path) -> bool | None:
    return read_recipe(RunFolder(folder).recipe).training.compile


@pytest.mark.slow
def test_on_a_cpu_nothing_is_compiled(plain: Path) -> None:
    assert compiles(plain) is False


@pytest.mark.slow
def test_where_it_cannot_be_compiled_the_run_says_so_and_goes_on(teacher: Path, plain: Path, tmp_path: Path) -> None:
    env = environment(CXX=str(tmp_path / "no-compiler"), TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "kernels"))
    sets = [f"--set={text}" for text in (*tiny.SHORTEST, "training.compile=true")]
    asked = ["shrink", str(teacher), "--ratio=0.3", "--output", str(tmp_path / "run"), *sets]
    # In a fresh process: torch looks for compilers once.
    fresh = [sys.executable, "-m", "diffcompress", *asked]
    done = subprocess.run(fresh, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("the student trains as it is, not compiled: ") == 1
    assert compiles(tmp_path / "run") is False
    assert same(weights(tmp_path / "run"), weights(plain))


def test_a_student_whose_step_fails_compiled_stays_as_it_was() -> None:
    trainee = Trainee(small_unet(), registry.find("UNet2DModel"))
    why_not = compiling.compile_student(trainee, partial(fail, "no kernel\n of this kind"))
    assert why_not == "RuntimeError: no kernel of this kind"
    assert trainee.student._compiled_call_impl is None
    assert all(weight.grad is None for weight in trainee.parameters())


@pytest.mark.slow
def test_a_compiled_student_has_the_same_gradients() -> None:
    trainee = Trainee(small_unet(), registry.find("UNet2DModel"))
    noisy, timestep = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 900])

    def step() -> None:
        trainee(noisy, timestep, {})[0].pow(2).mean().backward()

    step()
    expected = {name: weight.grad.clone() for name, weight in trainee.named_parameters() if weight.grad is not None}
    trainee.zero_grad()
    assert compiling.compile_student(trainee, step) is None
    assert all(weight.grad is None for weight in trainee.parameters())
    assert compiling.compile_student(trainee, partial(fail, "it is compiled")) is None
    step()
    assert expected.keys() == dict(trainee.named_parameters()).keys()  # no name changes: checkpoints are the same
    for name, weight in trainee.named_parameters():
        torch.testing.assert_close(weight.grad, expected[name], rtol=1e-3, atol=1e-5)
    compiling.leave(trainee)
    trainee.zero_grad()
    step()
    assert all(torch.equal(weight.grad, expected[name]) for name, weight in trainee.named_parameters())


@pytest.mark.slow
@pytest.mark.parametrize("worth", [0.0, 1e9])
def test_a_long_run_keeps_what_is_faster(
    worth: float, teacher: Path, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "DEVICES", ("cpu",))
    monkeypatch.setattr(compiling, "WORTH", worth)
    made = shrink(teacher, tmp_path / "short", Told())
    assert compiles(made) is False
    monkeypatch.setattr(compiling, "LONG_ENOUGH", 0.0)
    told = Told()
    made = shrink(teacher, tmp_path / "long", told)
    assert [note for note in told.notes if note.startswith("a step of the compiled student takes ")]
    assert compiles(made) is (worth > 0)
    if not worth:
        assert all(torch.equal(weights(made)[name], value) for name, value in weights(plain).items())
