"""The export proof: a fresh process without diffcompress loads the folder and must compute what memory computes."""

from __future__ import annotations

import json
import os
import subprocess
import time
from dataclasses import replace
from multiprocessing.spawn import get_executable
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import ModelMixin
from safetensors.torch import load, save_file
from torch import Tensor

from diffcompress.errors import (
    DiffCompressError,
    DoesNotFitError,
    RunStopped,
    tells_of_full_disk,
    tells_of_memory,
)
from diffcompress.export import probe
from diffcompress.export.weights import rounded
from diffcompress.noise import generator
from diffcompress.pipeline.load import LoadedPipeline
from diffcompress.pipeline.trace import calls_of
from diffcompress.records import units
from diffcompress.records.fingerprints import other_hashes, weight_hashes
from diffcompress.records.run_files import write_checked, write_json
from diffcompress.records.run_folder import RunFolder
from diffcompress.records.scratch import scratch
from diffcompress.runtime import dtype_name, free_memory

TOLERANCE = 1e-4
_KILLED = -9  # by SIGKILL, as the system does when memory runs out
# Two processes hold the pipeline's other parts, half-precision weights as float32.
ROOM = 4
# Elements of a video's latent that a CPU samples and decodes in a minute or so.
LARGEST_VIDEO = 200_000


def prove(run: RunFolder, student: ModelMixin, teacher: LoadedPipeline, *, dtype: torch.dtype) -> dict[str, Any]:
    """Compare `run.pipeline`, loaded elsewhere, with `student` in memory; write and return `run.proof`.

    Both compute in float32 on the CPU from weights rounded to `dtype`. Differences are relative to the largest value
    in memory, and at most TOLERANCE. An image is drawn where there is a whole pipeline that fits into memory twice;
    else `image_difference` is None and `sampled_with` says why. Raises DiffCompressError when the folder does not load
    or computes something else.
    """
    started = time.monotonic()
    denoiser = rounded(student, dtype)
    call, prediction = _recorded(denoiser, teacher)
    why_not = why_no_image(run.pipeline, teacher)
    options = None if why_not else drawing(teacher)
    asked = {
        "subfolder": teacher.family.subfolder,
        "class_name": teacher.family.class_name,
        "draw": options,
        "left_out": teacher.reference.left_out,
    }
    found, told = _elsewhere(run.pipeline, asked, call)
    expected, sampled_with = {"prediction": prediction}, why_not
    if options is not None:
        part = {teacher.family.subfolder: denoiser, "torch_dtype": torch.float32}
        part |= dict.fromkeys(teacher.reference.left_out)
        here = diffusers.DiffusionPipeline.from_pretrained(run.pipeline, **part)
        expected["image"], sampled_with = probe.draw(here, teacher.family.subfolder, options)
    differences = {name: _difference(found.get(name), value) for name, value in expected.items()}
    passed = all(d is not None and d <= TOLERANCE for d in differences.values())
    proof = {
        "passed": passed,
        "tolerance": TOLERANCE,
        "prediction_difference": differences["prediction"],
        "image_difference": differences.get("image"),
        "sampled_with": sampled_with,
        "sampler_steps": probe.NUM_STEPS,
        "dtype": dtype_name(dtype),
        "files": weight_hashes(run.pipeline),
        "others": other_hashes(run.pipeline),
        "seconds": round(time.monotonic() - started, 2),
        **told,
    }
    write_checked(run.proof, proof)
    if not passed:
        raise DiffCompressError(
            f"{run.pipeline} does not compute what the student in memory does: relative differences {differences}, "
            f"more than {TOLERANCE:g}",
            "keep the run folder and report this as a bug",
        )
    return proof


@torch.no_grad()
def _recorded(denoiser: ModelMixin, teacher: LoadedPipeline) -> tuple[dict[str, Any], Tensor]:
    """The keyword arguments of the denoiser in one call by its family, and what it returns for them.

    A batch of two: noise at an early and a late timestep, with the first and the last condition.
    """
    noisy = torch.randn(2, *teacher.sample_shape, generator=generator(probe.SEED))
    timestep = teacher.noise.at(torch.tensor([0.1, 1 - 1e-6]))
    last = teacher.conditions.count - 1
    conditioning = teacher.conditions.rows(torch.tensor([0, last]))
    with calls_of(denoiser) as calls:
        replace(teacher, denoiser=denoiser).predict_all(noisy, timestep, conditioning)
    call = {name: value for name, value in calls[0].items() if name != "return_dict"}
    return call, probe.predict(denoiser, call)


def why_no_image(folder: Path, teacher: LoadedPipeline, room: int = ROOM) -> str | None:
    """Why nothing can be drawn here with the pipeline in `folder`; None where it can. room: as ROOM."""
    if not (folder / "model_index.json").is_file():
        return "no image: a denoiser alone is no pipeline"
    if len(teacher.sample_shape) > 3 and torch.Size(teacher.sample_shape).numel() > LARGEST_VIDEO:
        return "no video: one of the teacher's length takes too long on a CPU"
    needed = room * (teacher.reference.other_bytes() or 0)
    if needed > free_memory(torch.device("cpu")):
        return f"no image: the pipeline's other parts need {units.size(needed)} of memory here"
    return None


def drawing(teacher: LoadedPipeline) -> dict[str, Any]:
    """How the pipeline is called for one image (`probe.draw`); what it does not take is left out later."""
    options: dict[str, Any] = {"shape": list(teacher.sample_shape)}
    if teacher.family.num_classes(teacher.config) is not None:
        # Guidance of 1: DiTPipeline's null label fits ImageNet's classes alone.
        options |= {"class_labels": [0], "guidance_scale": 1.0}
    if teacher.codec is not None and len(teacher.sample_shape) == 3:
        _, height, width = teacher.codec.pixel_shape(teacher.sample_shape)
        options |= {"height": height, "width": width, "use_resolution_binning": False}
    return options


def _elsewhere(folder: Path, asked: dict[str, Any], call: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and words of `probe.py` in a process of its own; raises DiffCompressError when it fails."""
    threads = str(torch.get_num_threads())
    hidden = {
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "PYTHONUTF8": "1",
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
    }
    with scratch("proof") as place:
        files = [place / name for name in ("asked.json", "inputs.safetensors", "outputs.safetensors")]
        tensors: dict[str, Tensor] = {}
        skeleton = probe.flatten(call, tensors)
        write_json(files[0], asked | {"call": skeleton})
        save_file(tensors, files[1])
        python = os.fsdecode(get_executable())  # as a program that embeds Python may have set it
        command = [python, "-I", str(Path(probe.__file__).resolve()), str(folder.resolve()), *map(str, files)]
        # A session of its own, or Ctrl-C on a terminal would end it and look like an export that does not load.
        done = subprocess.run(
            command,
            cwd=place,
            env=os.environ | hidden,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
            start_new_session=True,
        )
        if done.returncode != 0 or not files[2].is_file():
            raise _failed(folder, done)
        return load(files[2].read_bytes()), json.loads(done.stdout.strip().splitlines()[-1])


def _failed(folder: Path, done: subprocess.CompletedProcess[str]) -> DiffCompressError:
    """The error of a fresh process that ended without a result."""
    reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
    again = "run the same command again: only the proof is left to do"
    if tells_of_full_disk(done.stderr):
        return RunStopped(
            f"{folder} cannot be proved: the disk of temporary files is full", f"free some space and {again}"
        )
    if done.returncode == _KILLED or tells_of_memory(done.stderr):
        told = "it was killed" if done.returncode == _KILLED else reason
        message = f"{folder} cannot be proved: memory is too small for the process that loads it ({told})"
        return DoesNotFitError(message, f"free memory and {again}")
    return DiffCompressError(
        f"vanilla diffusers cannot load {folder} in a fresh process: {reason}",
        "keep the run folder and report this as a bug",
    )


def _difference(found: Tensor | None, expected: Tensor) -> float | None:
    """Largest absolute difference relative to the largest expected value; None when shapes or finiteness differ."""
    if found is None or found.shape != expected.shape or not torch.isfinite(found).all():
        return None
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-12))
