"""The export proof: a fresh process without diffcompress loads the folder and must compute what memory computes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diffcompress.errors import DiffCompressError
from diffcompress.export import probe
from diffcompress.export.provenance import weight_hashes
from diffcompress.export.weights import as_shipped, name_of
from diffcompress.noise import generator
from diffcompress.run_folder import RunFolder, read_json, write_json
from diffcompress.teacher.load import LoadedPipeline

TOLERANCE = 1e-4


def prove(
    run: RunFolder, student: nn.Module, teacher: LoadedPipeline, *, dtype: torch.dtype, threads: int = 2
) -> dict[str, Any]:
    """Compare `run.pipeline`, loaded elsewhere, with `student` in memory; write and return `run.proof`.

    Both compute in float32 on the CPU from weights rounded to `dtype`. Differences are relative to the largest value
    in memory, and at most TOLERANCE. Raises DiffCompressError when the folder does not load or computes something else.
    """
    started = time.monotonic()
    index = read_json(run.pipeline / "model_index.json")
    subfolder = "unet" if "unet" in index else "transformer"
    scheduler = getattr(diffusers, index["scheduler"][1]).from_config(teacher.reference.scheduler)
    here = getattr(diffusers, index["_class_name"])(
        **{subfolder: nn.Module.to(as_shipped(student, dtype), torch.float32), "scheduler": scheduler}
    )
    inputs = _inputs(teacher)
    expected, sampled_with = probe.observe(here, subfolder, inputs)
    found, told = _elsewhere(run.pipeline, inputs, threads)
    differences = {name: _difference(found.get(name), value) for name, value in expected.items()}
    passed = all(d is not None and d <= TOLERANCE for d in differences.values())
    proof = {
        "passed": passed,
        "tolerance": TOLERANCE,
        "prediction_difference": differences["prediction"],
        "image_difference": differences["image"],
        "sampled_with": sampled_with,
        "sampler_steps": probe.NUM_STEPS,
        "dtype": name_of(dtype),
        "files": weight_hashes(run.pipeline),
        "seconds": round(time.monotonic() - started, 2),
        **told,
    }
    write_json(run.proof, proof)
    if not passed:
        raise DiffCompressError(
            f"{run.pipeline} does not compute what the student in memory does: relative differences {differences}, "
            f"more than {TOLERANCE:g}",
            "keep the run folder and report this as a bug",
        )
    return proof


def _inputs(teacher: LoadedPipeline) -> dict[str, Tensor]:
    """A fixed batch of two: noise at an early and a late timestep, and labels for a class-conditional denoiser."""
    last = teacher.noise.num_timesteps - 1
    noisy = torch.randn(2, *teacher.sample_shape, generator=generator(probe.SEED))
    inputs = {"sample": noisy, "timestep": torch.tensor([last // 10, last])}
    classes = teacher.family.num_classes(teacher.config)
    return inputs if classes is None else inputs | {"class_labels": torch.tensor([0, classes - 1])}


def _elsewhere(folder: Path, inputs: dict[str, Tensor], threads: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and words of `probe.py` in a process of its own; raises DiffCompressError when it fails."""
    hidden = {
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
    }
    with tempfile.TemporaryDirectory(prefix="diffcompress-proof-") as scratch:
        asked, answered = Path(scratch) / "inputs.safetensors", Path(scratch) / "outputs.safetensors"
        save_file(inputs, asked)
        command = [
            sys.executable,
            "-I",
            str(Path(probe.__file__).resolve()),
            str(folder.resolve()),
            str(asked),
            str(answered),
        ]
        done = subprocess.run(
            command, cwd=scratch, env=os.environ | hidden, capture_output=True, text=True, check=False
        )
        if done.returncode != 0 or not answered.is_file():
            reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise DiffCompressError(
                f"vanilla diffusers cannot load {folder} in a fresh process: {reason}",
                "keep the run folder and report this as a bug",
            )
        return load_file(answered), json.loads(done.stdout.strip().splitlines()[-1])


def _difference(found: Tensor | None, expected: Tensor) -> float | None:
    """Largest absolute difference relative to the largest expected value; None when shapes or finiteness differ."""
    if found is None or found.shape != expected.shape or not torch.isfinite(found).all():
        return None
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-12))
