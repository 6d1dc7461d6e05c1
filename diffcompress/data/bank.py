"""The bank: clean samples, drawn from the teacher itself (default) or the user's own, and the trajectories they left.

A trajectory entry is one denoiser call of the teacher's own sampling: (noisy, timestep, prediction, sample index). It
costs nothing beyond sampling the bank.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from diffcompress.data import images
from diffcompress.data.shards import Tensors, make_shards, read_shards
from diffcompress.noise import generator
from diffcompress.recipe import BankSection
from diffcompress.run_folder import read_json, write_json
from diffcompress.runtime import Progress, Runtime
from diffcompress.sampling import automatic_batch_size, conditioning_for, sample
from diffcompress.teacher.load import LoadedPipeline

SHARD_SIZE = 128
TRAJECTORY_BYTES = 2 << 30
KEEP_STREAM = 11


@dataclass(frozen=True)
class Bank:
    """clean `[N, C, *spatial]`; conditioning: tensors with N rows; trajectory: noisy, timestep, prediction, index
    with one row per stored denoiser call (empty for the user's own images); key: content key."""

    clean: Tensor
    conditioning: dict[str, Tensor]
    trajectory: Tensors
    key: str

    @property
    def num_samples(self) -> int:
        return len(self.clean)

    @property
    def num_trajectory(self) -> int:
        return len(self.trajectory.get("timestep", ()))


def fill(
    folder: Path,
    teacher: LoadedPipeline,
    section: BankSection,
    seed: int,
    data: str | None,
    runtime: Runtime,
    progress: Progress,
) -> Bank:
    """The bank in `folder`, made or completed. Sample i follows from (seed, i) alone, whichever process draws it.

    Raises UsageError for unusable `data`; RunStopped or RunInterrupted between shards.
    """
    if data is not None:
        return _from_images(folder, teacher, data, runtime, progress)
    key = _key(teacher.fingerprint, section.model_dump(), seed)
    batch_size = _settled_batch_size(folder, teacher, key, runtime)
    keep = _kept_positions(teacher, section)

    def make(indices: range) -> Tensors:
        parts = [
            _sample_batch(teacher, section, seed, list(indices)[start : start + batch_size], keep)
            for start in range(0, len(indices), batch_size)
        ]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    make_shards(folder, section.num_samples, SHARD_SIZE, make, runtime, progress, "bank")
    rows = read_shards(folder, section.num_samples, SHARD_SIZE)
    trajectory = {name: rows.pop(f"trajectory.{name}").flatten(0, 1) for name in ("noisy", "timestep", "prediction")}
    trajectory["index"] = torch.arange(section.num_samples).repeat_interleave(keep)
    return Bank(rows.pop("clean"), rows, trajectory, key)


def _sample_batch(teacher: LoadedPipeline, section: BankSection, seed: int, indices: list[int], keep: int) -> Tensors:
    calls: list[tuple[Tensor, Tensor, Tensor]] = []
    conditioning = conditioning_for(teacher, indices, seed)
    clean = sample(
        teacher,
        indices,
        seed=seed,
        num_steps=section.sampler_steps,
        eta=section.eta,
        jitter=section.jitter,
        conditioning=conditioning,
        record=lambda *call: calls.append(tuple(tensor.cpu() for tensor in call)),  # type: ignore[arg-type]
    )
    positions = torch.stack(
        [torch.randperm(len(calls), generator=generator(seed, KEEP_STREAM, i))[:keep] for i in indices]
    )
    rows = torch.arange(len(indices))[:, None]
    stacked = [torch.stack(tensors, 1)[rows, positions] for tensors in zip(*calls, strict=True)]
    names = ("trajectory.noisy", "trajectory.timestep", "trajectory.prediction")
    return {"clean": clean, **conditioning, **dict(zip(names, stacked, strict=True))}


def _kept_positions(teacher: LoadedPipeline, section: BankSection) -> int:
    """Denoiser calls kept per sample, so that all trajectories together stay below TRAJECTORY_BYTES."""
    entry = 2 * 4 * torch.Size(teacher.sample_shape).numel()
    return max(1, min(section.sampler_steps, TRAJECTORY_BYTES // (entry * section.num_samples)))


def _settled_batch_size(folder: Path, teacher: LoadedPipeline, key: str, runtime: Runtime) -> int:
    """Found from memory once and recorded, so that a resumed bank is drawn in the same batches."""
    record = folder / "bank.json"
    if runtime.is_main and not (record.exists() and read_json(record)["key"] == key):
        write_json(record, {"key": key, "source": teacher.reference.id, "batch_size": automatic_batch_size(teacher)})
    runtime.wait()
    return int(read_json(record)["batch_size"])


def _from_images(folder: Path, teacher: LoadedPipeline, data: str, runtime: Runtime, progress: Progress) -> Bank:
    loaded = images.read(Path(data), teacher.sample_shape, teacher.family.num_classes(teacher.config))
    for text in loaded.warnings:
        progress.warn(text)
    digest = hashlib.sha256(loaded.clean.numpy().tobytes()).hexdigest()
    if runtime.is_main:
        write_json(
            folder / "bank.json",
            {"key": digest, "source": data, "num_samples": len(loaded.clean), "warnings": loaded.warnings},
        )
    return Bank(loaded.clean, loaded.conditioning, {}, digest)


def _key(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
