"""Samples that the teacher draws for a bank, and the calls of its denoiser on the way that are kept of each."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from diffcompress.bank.keeping import Kept
from diffcompress.bank.shards import Tensors, make_shards, read_shards, shard_path
from diffcompress.errors import UsageError
from diffcompress.noise import generator, streams
from diffcompress.pipeline.load import LoadedPipeline
from diffcompress.pipeline.sampling import sample
from diffcompress.pipeline.stored_rows import StoredRows, stored_table
from diffcompress.recipe import BankSection
from diffcompress.runtime import Progress, Runtime

TRAJECTORY = ("noisy", "timestep", "prediction", "condition")
# Of tensors in shards, those that are read from them row by row.
ON_DISK = ("trajectory.noisy", "trajectory.prediction")
Table = Tensor | StoredRows


def drawn(
    folder: Path,
    samples: range,
    key: str,
    kept: Kept,
    batch_size: int,
    teacher: LoadedPipeline,
    section: BankSection,
    seed: int,
    runtime: Runtime,
    progress: Progress,
) -> tuple[Tensor, Tensor, dict[str, Table]]:
    """Of the teacher's `samples`, which lie in `folder` or are drawn into it, what a Bank calls so: clean, condition,
    trajectory."""

    def make(items: range) -> Tensors:
        indices = list(samples[items.start : items.stop])
        parts = [
            _sample_batch(teacher, section, seed, indices[start : start + batch_size], kept)
            for start in range(0, len(indices), batch_size)
        ]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    size, of = kept.shard_size, kept.key(key)
    make_shards(folder, len(samples), size, make, runtime, progress, "bank", of)
    index = torch.tensor(samples).repeat_interleave(kept.positions)
    if kept.half:
        table = stored_table([shard_path(folder, number) for number in range(-(-len(samples) // size))])
        rows = {name: table[name].whole() for name in table if name not in ON_DISK}
        calls = {name: rows[f"trajectory.{name}"] for name in ("timestep", "condition")}
        on_disk = {name.removeprefix("trajectory."): table[name] for name in ON_DISK}
        return rows["clean"], rows["condition"], {**calls, **on_disk, "index": index}
    rows = read_shards(folder, len(samples), size, of)
    held = {name: rows[f"trajectory.{name}"].flatten(0, 1) for name in TRAJECTORY}
    return rows["clean"], rows["condition"], {**held, "index": index}


def _sample_batch(teacher: LoadedPipeline, section: BankSection, seed: int, indices: list[int], kept: Kept) -> Tensors:
    rows = teacher.conditions.draw(indices, seed)
    per_step = calls_per_step(teacher, section)
    drawn = [_kept(per_step, section, kept.positions, generator(seed, streams.KEPT_CALLS, i)) for i in indices]
    calls = _KeptCalls(torch.stack(drawn), half=kept.half)
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
    if kept.half:  # a row of the file for each call
        trajectory = {name: value.flatten(0, 1) for name, value in trajectory.items()}
    return {"clean": clean, "condition": rows, **trajectory}


class _KeptCalls:
    """Of a batch's denoiser calls those that stay, `[B, keep, ...]` on the CPU; the others are many times as much."""

    def __init__(self, wanted: Tensor, *, half: bool) -> None:
        """wanted `[B, keep]`: numbers of the calls that stay of each sample; half: their images in float16."""
        self._wanted, self._half, self._number = wanted, half, 0
        self.tensors: Tensors = {}

    def see(self, *call: Tensor) -> None:
        """The next call of all samples (noisy, timestep, prediction, condition).

        Raises UsageError where the teacher predicts what no student can learn.
        """
        _check_finite(timestep=call[1], prediction=call[2].half() if self._half else call[2])
        row, place = (self._wanted == self._number).nonzero(as_tuple=True)
        for name, value in zip(TRAJECTORY, call, strict=True):
            value = value.half() if self._half and f"trajectory.{name}" in ON_DISK else value
            if name not in self.tensors:
                self.tensors[name] = torch.empty(*self._wanted.shape, *value.shape[1:], dtype=value.dtype)
            self.tensors[name][row, place] = value[row.to(value.device)].cpu()
        self._number += 1


def _check_finite(timestep: Tensor, prediction: Tensor) -> None:
    beyond = ", or some above 65504," if prediction.dtype == torch.half else ""
    broken = ~torch.isfinite(prediction).flatten(1).all(1)
    if broken.any():
        raise UsageError(
            f"the teacher predicts NaN or infinite values{beyond} at timestep {timestep[broken][0]:g}, so its samples "
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
