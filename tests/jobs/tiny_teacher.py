"""A tiny real teacher on disk, and real `diffcompress` processes on it."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests import tiny, warm

# Few and small, yet with every part: both stages, two pools of targets, trajectories, previews, checkpoints.
SMALL = {
    "bank.num_samples": 160,
    "bank.sampler_steps": 3,
    "targets.reuse": 2,
    "targets.pool_size": 64,
    "stages.0.num_steps": 12,
    "stages.1.num_steps": 18,
    "training.batch_size": 8,
    "training.warmup_steps": 2,
    "training.log_every_steps": 1,
    "training.preview_every_steps": 1000,
    "evaluation.num_samples": 4,
    "evaluation.sampler_steps": 2,
}


def save_teacher(folder: Path, **changes) -> Path:
    """A pipeline of 50 timesteps and 8x8 one-channel images, without attention: about 30,000 parameters."""
    blocks: dict[str, Any] = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    return tiny.save_pipeline(folder, num_train_timesteps=50, **(blocks | changes))


def settings(**changes) -> list[str]:
    """`--set` options of a small run; a dot in a key is written as two underscores."""
    values = SMALL | {key.replace("__", "."): value for key, value in changes.items()}
    return [f"--set={key}={value}" for key, value in values.items()]


def command(teacher: Path | str, output: Path, *more: str, **changes) -> list[str]:
    return [
        sys.executable,
        "-m",
        "diffcompress",
        "shrink",
        str(teacher),
        "--ratio",
        "0.3",
        "--output",
        str(output),
        *settings(**changes),
        *more,
    ]


def run(arguments: list[str], **env: str) -> subprocess.CompletedProcess[str]:
    """A command line of `python` in a process of its own, a warm one (tests/warm.py)."""
    return _ended(arguments, env, lambda process: process.wait(300))


def environment(**env: str) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | env


def stop_when(
    arguments: list[str], condition: Callable[[], bool], number: int = signal.SIGKILL
) -> subprocess.CompletedProcess[str]:
    """Start a process and send it a signal as soon as `condition` holds; fails when it ends before."""

    def stop(process: warm.Warm) -> None:
        deadline = time.monotonic() + 240
        while not condition():
            assert process.poll() is None, f"ended before the signal, with {process.returncode}"
            assert time.monotonic() < deadline, "the condition never held"
            time.sleep(0.0005)
        process.send_signal(number)
        process.wait(120)

    return _ended(arguments, {}, stop)


def _ended(
    arguments: list[str], env: dict[str, str], attend: Callable[[warm.Warm], object]
) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err, open(os.devnull) as nothing:
        streams = (nothing.fileno(), out.fileno(), err.fileno())
        with warm.Warm(arguments[1:], environment(**env), streams) as process:
            attend(process)
            assert process.returncode is not None, "it has not ended"
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(arguments, process.returncode, out.read(), err.read())


def weights(run_folder: Path) -> dict[str, torch.Tensor]:
    return load_file(run_folder / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
