"""What one step learns from, and how it comes to the device that asks for it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from diffcompress.bank.shards import Tensors


@dataclass(frozen=True)
class Batch:
    """noisy `[B, C, *spatial]`; prediction: the teacher's `[B, C or 2C, *spatial]`, with its learned variance where it
    has one; diffusion_target: like noisy, None where no loss wants it; timestep `[B]`; conditioning: B rows."""

    noisy: Tensor
    timestep: Tensor
    prediction: Tensor
    diffusion_target: Tensor | None
    conditioning: dict[str, Tensor]

    def split(self, size: int) -> list[Batch]:
        """Parts of `size` rows; this batch itself when it is no larger."""
        if size >= len(self.noisy):
            return [self]
        parts = []
        for start in range(0, len(self.noisy), size):
            rows = slice(start, start + size)
            conditioning = {name: value[rows] for name, value in self.conditioning.items()}
            target = None if self.diffusion_target is None else self.diffusion_target[rows]
            parts.append(Batch(self.noisy[rows], self.timestep[rows], self.prediction[rows], target, conditioning))
        return parts


class Ahead:
    """Tensors of step after step: those of the next are made by a thread while a device computes with these.

    make: the host's part of a step, in pinned memory where it can; soon: whether it may be made by another thread,
    beside whatever this one does. On a CPU every step is made when it is asked for, as a thread would take the cores
    from the step itself.
    """

    def __init__(self, make: Callable[[int], Tensors], soon: Callable[[int], bool], device: torch.device) -> None:
        self._make, self._soon, self._device = make, soon, device
        self._worker = None if device.type == "cpu" else ThreadPoolExecutor(1, "batches")
        self._next: tuple[int, Future[Tensors]] | None = None
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def take(self, step: int) -> Tensors:
        """On the device. Whatever `make` raises."""
        step_ahead, self._next = self._next, None
        made = step_ahead[1].result() if step_ahead is not None else None
        if made is None or step_ahead is None or step_ahead[0] != step:
            made = self._make(step)
        there = self._there(made)
        if self._worker is not None and self._soon(step + 1):
            self._next = step + 1, self._worker.submit(self._make, step + 1)
        return there

    def _there(self, made: Tensors) -> Tensors:
        if self._stream is None:
            # Asynchronous copies of memory that is freed at once arrive corrupted on some devices.
            return {name: value.to(self._device) for name, value in made.items()}
        with torch.cuda.stream(self._stream):
            there = {name: value.to(self._device, non_blocking=True) for name, value in made.items()}
        computing = torch.cuda.current_stream(self._device)
        computing.wait_stream(self._stream)
        for value in there.values():
            value.record_stream(computing)
        return there
