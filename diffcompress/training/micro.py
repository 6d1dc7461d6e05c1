"""Micro-batches: a step's share of the batch in as many parts as memory asks for, one gradient."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

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

# Bytes of gradients, averages and optimizer for each trained parameter, not there yet when the batch is chosen.
STATE_BYTES = 16


def automatic_size(
    trainee: nn.Module, teacher: LoadedPipeline, stage: StageSection, share: int, device: torch.device
) -> int:
    """Rows of a micro-batch: the largest part of `share` (by a whole divisor) whose step fits into free memory.

    From memory alone, never timing, so that the same machine finds the same.
    """
    fitting = _need(trainee, teacher, stage, device).rows_in(_room(trainee, device))
    return next(share // parts for parts in range(1, share + 1) if share % parts == 0 and share // parts <= fitting)


def must_recompute(trainee: Trainee, teacher: LoadedPipeline, stage: StageSection, device: torch.device) -> bool:
    """Whether not one sample's step fits into free memory, and takes less where the backward pass computes the
    student's activations again, which changes no bit of its gradients."""
    need = _need(trainee, teacher, stage, device)
    if need.bytes(1) <= SHARE * _room(trainee, device):
        return False
    try:
        trainee.student.enable_gradient_checkpointing()
    except ValueError:  # the class cannot
        return False
    less = _need(trainee, teacher, stage, device)
    trainee.student.disable_gradient_checkpointing()
    return less.bytes(1) < need.bytes(1)


def _room(trainee: nn.Module, device: torch.device) -> int:
    return free_memory(device) - STATE_BYTES * sum(p.numel() for p in trainee.parameters())


def _need(trainee: nn.Module, teacher: LoadedPipeline, stage: StageSection, device: torch.device) -> Need:
    """What a step takes beside weights and their gradients."""
    with torch.no_grad():
        channels = trainee(*_example(teacher, 1))[0].shape[1]

    def step(rows: int) -> None:
        noisy, timestep, conditioning = _example(teacher, rows)
        prediction = noisy.new_zeros(rows, channels, *noisy.shape[2:])
        batch = Batch(noisy, timestep, prediction, torch.zeros_like(noisy), conditioning)
        step_losses(trainee, teacher, batch, stage, lambda value: value)[0].backward()

    with gradients(trainee):
        return Need.of(step, device)


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
