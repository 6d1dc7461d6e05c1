"""Samples that the teacher draws for a bank, and the calls of its denoiser on the way that are kept of each."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from diffcompress.bank.shards import Tensors, make_shards, read_shards
from diffcompress.errors import UsageError
from diffcompress.noise import generator, streams
from diffcompress.pipeline.load import LoadedPipeline
from diffcompress.pipeline.sampling import sample
from diffcompress.recipe import BankSection
from diffcompress.runtime import Progress, Runtime

SHARD_SIZE = 128
TRAJECTORY_BYTES = 2 << 30
TRAJECTORY = ("noisy", "timestep", "prediction", "condition")


def drawn(
    folder: Path,
    samples: range,
    key: str,
    batch_size: int,
    teacher: LoadedPipeline,
    section: BankSection,
    seed: int,
    runtime: Runtime,
    progress: Progress,
) -> tuple[Tensor, Tensor, Tensors]:
    """Of the teacher's `samples`, which lie in `folder` or are drawn into it, what a Bank calls so: clean, condition,
    trajectory."""
    keep = kept_positions(teacher.sample_shape, section)

    def make(items: range) -> Tensors:
        indices = list(samples[items.start : items.stop])
        parts = [
            _sample_batch(teacher, section, seed, indices[start : start + batch_size], keep)
            for start in range(0, len(indices), batch_size)
        ]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    make_shards(folder, len(samples), SHARD_SIZE, make, runtime, progress, "bank", key)
    rows = read_shards(folder, len(samples), SHARD_SIZE, key)
    trajectory = {name: rows[f"trajectory.{name}"].flatten(0, 1) for name in TRAJECTORY}
    trajectory["index"] = torch.tensor(samples).repeat_interleave(keep)
    return rows["clean"], rows["condition"], trajectory


def _sample_batch(teacher: LoadedPipeline, section: BankSection, seed: int, indices: list[int], keep: int) -> Tensors:
    rows = teacher.conditions.draw(indices, seed)
    per_step = calls_per_step(teacher, section)
    drawn = [_kept(per_step, section, keep, generator(seed, streams.KEPT_CALLS, i)) for i in indices]
    calls = _KeptCalls(torch.stack(drawn))
    clean = sample(
        teacher,
        indices,
        seed=seed,
        num_steps=section.sampler_steps,
        eta=section.eta,
        guidance=section.guidance,
        jitter=section.jitter,
        conditions=rows,
        record=calls.see,
    )
    trajectory = {f"trajectory.{name}": value for name, value in calls.tensors.items()}
    return {"clean": clean, "condition": rows, **trajectory}


class _KeptCalls:
    """Of a batch's denoiser calls those that stay, `[B, keep, ...]` on the CPU; the others are many times as much."""

    def __init__(self, wanted: Tensor) -> None:
        """wanted `[B, keep]`: numbers of the calls that stay of each sample."""
        self._wanted, self._number = wanted, 0
        self.tensors: Tensors = {}

    def see(self, *call: Tensor) -> None:
        """The next call of all samples (noisy, timestep, prediction, condition).

        Raises UsageError where the teacher predicts what no student can learn.
        """
        _check_finite(timestep=call[1], prediction=call[2])
        row, place = (self._wanted == self._number).nonzero(as_tuple=True)
        for name, value in zip(TRAJECTORY, call, strict=True):
            if name not in self.tensors:
                self.tensors[name] = torch.empty(*self._wanted.shape, *value.shape[1:], dtype=value.dtype)
            self.tensors[name][row, place] = value[row.to(value.device)].cpu()
        self._number += 1


def _check_finite(timestep: Tensor, prediction: Tensor) -> None:
    broken = ~torch.isfinite(prediction).flatten(1).all(1)
    if broken.any():
        raise UsageError(
            f"the teacher predicts NaN or infinite values at timestep {timestep[broken][0]:g}, so its samples "
            "teach nothing",
            "draw a sample with diffusers first: its weights, or their half precision, are at fault",
        )


def _kept(per_step: int, section: BankSection, keep: int, own: torch.Generator) -> Tensor:
    """Which of a sample's denoiser calls stay `[keep]`: one of each step, mostly the conditional of two."""
    steps = torch.randperm(section.sampler_steps, generator=own)[:keep]
    if per_step == 1:
        return steps
    return per_step * steps + (torch.rand(keep, generator=own) < section.null_share).long()


def calls_per_step(teacher: LoadedPipeline, section: BankSection) -> int:
    """Of the denoiser: guidance takes two, where there is a null conditioning."""
    return 2 if section.guidance != 1 and teacher.conditions.null is not None else 1


def kept_positions(sample_shape: tuple[int, ...], section: BankSection) -> int:
    """Denoiser calls kept per sample, so that all trajectories together stay below TRAJECTORY_BYTES."""
    return max(1, min(section.sampler_steps, TRAJECTORY_BYTES // (call_bytes(sample_shape) * section.num_samples)))


def call_bytes(sample_shape: tuple[int, ...]) -> int:
    """Bytes of one stored denoiser call at most: input and prediction, a learned variance with it."""
    return 3 * 4 * math.prod(sample_shape)


def growth(
    calls: int, stored: int, keep: int, sample_shape: tuple[int, ...], section: BankSection, per_step: int
) -> int:
    """Samples that a bank of `stored` calls, `keep` of each sample, grows by, so that `calls` are stored or bytes are
    enough; whole shards. per_step: calls of the denoiser in a step of sampling.

    None where the bank must not grow, or where a stored call costs more than a prediction of noised samples: with
    guidance, of whose two calls one is kept, and where not all of a sample's calls are.
    """
    costly = keep < section.sampler_steps or per_step > 1
    if not section.grow or costly or calls <= stored:
        return 0
    most = TRAJECTORY_BYTES // (call_bytes(sample_shape) * keep) - section.num_samples
    return max(0, min(-(-(calls - stored) // (keep * SHARD_SIZE)), most // SHARD_SIZE)) * SHARD_SIZE
