"""Micro-batches: a step's share of the batch in as many parts as memory asks for, one gradient."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from diffcompress.bank.batch import Batch
from diffcompress.losses.reduction import Scalar
from diffcompress.losses.terms import ReduceMean
from diffcompress.pipeline.load import LoadedPipeline
from diffcompress.recipe import StageSection
from diffcompress.runtime import Runtime, free_memory
from diffcompress.training.objective import step_losses

# Share of the free memory that activations may take: gradients, moments and the allocator want some too.
MEMORY_SHARE = 0.5


def automatic_size(trainee: nn.Module, teacher: LoadedPipeline, share: int, device: torch.device) -> int:
    """Rows of a micro-batch: the largest part of `share` (by a whole divisor) whose activations fit into free memory.

    From memory alone, never timing, so that the same machine finds the same.
    """
    # What autocast keeps of the weights is there once, whatever the batch.
    needed = max(1, _saved_bytes(trainee, teacher, 2) - _saved_bytes(trainee, teacher, 1))
    fitting = max(1, int(MEMORY_SHARE * free_memory(device) / needed))
    return next(share // parts for parts in range(1, share + 1) if share % parts == 0 and share // parts <= fitting)


def _saved_bytes(trainee: nn.Module, teacher: LoadedPipeline, batch: int) -> int:
    """Bytes that a forward keeps for the backward pass."""
    own = {p.untyped_storage().data_ptr() for p in trainee.parameters()}
    seen: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    inputs = teacher.example_inputs(batch)
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        output = trainee(inputs.pop("noisy"), inputs.pop("timestep"), inputs)
    del output  # it held the graph, so that no storage's address came twice
    return sum(seen.values())


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
