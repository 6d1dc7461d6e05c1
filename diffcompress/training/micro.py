"""Micro-batches: a step's share of the batch in as many parts as memory asks for, one gradient."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diffcompress.bank.batch import Batch
from diffcompress.losses.reduction import Scalar
from diffcompress.losses.terms import ReduceMean
from diffcompress.memory import SHARE, Need, gradients
from diffcompress.pipeline.load import LoadedPipeline
from diffcompress.recipe import StageSection
from diffcompress.runtime import Runtime, free_memory
from diffcompress.training.objective import Trainee, step_losses

# Bytes for each trained parameter, not there yet when the batch is chosen: its gradient; average and moments.
GRADIENT_BYTES, KEPT_BYTES = 4, 12


@dataclass(frozen=True)
class Fit:
    """What free memory holds of a step. rows: at once, 1 at least; recompute: with the student's activations computed
    again for the backward pass, which changes no bit of its gradients; shard: with averages and moments shared out over
    the processes."""

    rows: int
    recompute: bool = False
    shard: bool = False

    def part(self, share: int) -> int:
        """Rows of a micro-batch: the largest part of `share` rows, by a whole divisor, that memory holds."""
        return next(
            share // parts for parts in range(1, share + 1) if share % parts == 0 and share // parts <= self.rows
        )


def fit(
    trainee: Trainee,
    teacher: LoadedPipeline,
    stage: StageSection,
    device: torch.device,
    *,
    processes: int = 1,
    shard: bool | None = None,
) -> Fit:
    """How a step fits into free memory. Where not one sample's does, averages and moments are shared out over
    `processes`, unless `shard` says whether; where it still does not, activations are computed again.

    From memory alone, never timing, so that the same machine finds the same. The student stays as it is.
    """
    count, free = sum(p.numel() for p in trainee.parameters()), free_memory(device)
    room, shared = (free - count * (GRADIENT_BYTES + KEPT_BYTES // keepers) for keepers in (1, processes))
    need = _need(trainee, teacher, stage, device)
    if shard is None:
        shard = processes > 1 and need.bytes(1) > SHARE * room
    room = shared if shard else room
    if need.bytes(1) > SHARE * room and not trainee.student.is_gradient_checkpointing:
        with contextlib.suppress(ValueError):  # the class cannot
            trainee.student.enable_gradient_checkpointing()
            less = _need(trainee, teacher, stage, device)
            trainee.student.disable_gradient_checkpointing()
            if less.bytes(1) < need.bytes(1):
                return Fit(less.rows_in(room), recompute=True, shard=shard)
    return Fit(need.rows_in(room), shard=shard)


def _need(trainee: nn.Module, teacher: LoadedPipeline, stage: StageSection, device: torch.device) -> Need:
    """What a step takes beside weights and their gradients."""
    with gradients(trainee):
        return Need.of(example_step(trainee, teacher, stage), device)


def example_step(trainee: nn.Module, teacher: LoadedPipeline, stage: StageSection) -> Callable[[int], None]:
    """Forward and backward pass of so many examples, whose gradients stay."""
    with torch.no_grad():
        channels = trainee(*_example(teacher, 1))[0].shape[1]

    def step(rows: int) -> None:
        noisy, timestep, conditioning = _example(teacher, rows)
        prediction = noisy.new_zeros(rows, channels, *noisy.shape[2:])
        batch = Batch(noisy, timestep, prediction, torch.zeros_like(noisy), conditioning)
        step_losses(trainee, teacher, batch, stage, lambda value: value)[0].backward()

    return step


def _example(teacher: LoadedPipeline, rows: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    inputs = teacher.example_inputs(rows)
    return inputs.pop("noisy"), inputs.pop("timestep"), inputs


def backward(
    trainee: nn.Module,
    teacher: LoadedPipeline,
    batch: Batch,
    stage: StageSection,
    runtime: Runtime,
    reduce_mean: ReduceMean,
    size: int,
) -> tuple[Scalar, Mapping[str, Scalar]]:
    """Gradients of the stage's loss on `batch`, in micro-batches of `size` rows; the loss and the terms for the log.

    The gate of LIFT and PLACE is that of a micro-batch over all processes. A smaller last part counts for less.
    """
    parts = batch.split(size)
    totals, logged = [], []
    for number, part in enumerate(parts):
        last = number + 1 == len(parts)
        whole = len(batch.noisy) / len(part.noisy)
        # Gradients are exchanged between processes once, with the last part.
        with contextlib.nullcontext() if last else runtime.accelerator.no_sync(trainee):
            total, terms = step_losses(trainee, teacher, part, stage, reduce_mean)
            runtime.accelerator.backward(total / whole)
        totals.append(total.detach() / whole)
        logged.append({name: value / whole for name, value in terms.items()})
    return torch.stack(totals).sum(), {n: torch.stack([terms[n] for terms in logged]).sum() for n in logged[0]}
