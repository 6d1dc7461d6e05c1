"""Samples from any LoadedPipeline: bank, evaluation, report sheets and the export proof all use this."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import psutil
import torch
from torch import Tensor

from diffcompress.noise import generator
from diffcompress.teacher.load import LoadedPipeline

LABEL_STREAM, NOISE_STREAM = 1, 2
Recorder = Callable[[Tensor, Tensor, Tensor], None]


def conditioning_for(pipeline: LoadedPipeline, indices: Sequence[int], seed: int) -> dict[str, Tensor]:
    """Conditioning of samples `indices`: class labels drawn from (seed, i), nothing for unconditional models."""
    classes = pipeline.family.num_classes(pipeline.config)
    if classes is None:
        return {}
    labels = [int(torch.randint(classes, (1,), generator=generator(seed, LABEL_STREAM, i))) for i in indices]
    return {"class_labels": torch.tensor(labels)}


@torch.no_grad()
def sample(
    pipeline: LoadedPipeline,
    indices: Sequence[int],
    *,
    seed: int,
    num_steps: int,
    eta: float = 0.0,
    jitter: bool = False,
    conditioning: Mapping[str, Tensor] | None = None,
    record: Recorder | None = None,
) -> Tensor:
    """Clean samples `[len(indices), C, *spatial]` on the CPU, in one batch.

    Sample i follows from (seed, i) alone: its start, its steps' noise, its labels and its timestep grid.
    jitter shifts each sample's timestep grid at random; `record(noisy, timestep, prediction)` sees every denoiser call.
    """
    device = pipeline.device
    generators = [generator(seed, NOISE_STREAM, i) for i in indices]

    def draw() -> Tensor:
        return torch.stack([torch.randn(pipeline.sample_shape, generator=g) for g in generators]).to(device)

    given = conditioning_for(pipeline, indices, seed) if conditioning is None else conditioning
    given = {name: value.to(device) for name, value in given.items()}
    noisy = draw()
    offset = torch.stack([torch.rand((), generator=g) for g in generators]) if jitter else torch.zeros(len(indices))
    grid = pipeline.noise.grid(num_steps, offset).to(device)
    for position in range(num_steps):
        timestep = grid[position]
        following = grid[position + 1] if position + 1 < num_steps else torch.full_like(timestep, -1)
        prediction = pipeline.predict(noisy, timestep, given)
        if record is not None:
            record(noisy, timestep, prediction)
        fresh = draw() if eta > 0 else torch.zeros_like(noisy)
        noisy = pipeline.noise.step(prediction, noisy, timestep, following, eta, fresh)
    return noisy.cpu()


def automatic_batch_size(pipeline: LoadedPipeline) -> int:
    """Largest power of two whose denoiser call fits a quarter of the free memory; from memory alone, never timing.

    At most 64 on a CPU, where larger batches gain nothing, and 512 elsewhere.
    """
    conditioning = {name: value.to(pipeline.device) for name, value in conditioning_for(pipeline, [0], 0).items()}
    seen = 0

    def count(_module: object, _inputs: object, output: object) -> None:
        nonlocal seen
        seen += output.numel() * output.element_size() if isinstance(output, Tensor) else 0

    handles = [module.register_forward_hook(count) for module in pipeline.denoiser.modules()]
    try:
        with torch.no_grad():
            noisy = torch.zeros(1, *pipeline.sample_shape, device=pipeline.device)
            pipeline.predict(noisy, torch.zeros(1, dtype=torch.long, device=pipeline.device), conditioning)
    finally:
        for handle in handles:
            handle.remove()
    if pipeline.device.type == "cuda":
        free, limit = torch.cuda.mem_get_info(pipeline.device)[0], 512
    else:
        free, limit = psutil.virtual_memory().available, 64
    fitting = max(1, free // 4 // max(1, seen))
    return min(limit, 1 << (fitting.bit_length() - 1))
