"""Samples from any LoadedPipeline: bank, evaluation, report sheets and the export proof all use this."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from diffcompress.memory import Need
from diffcompress.noise import generator, streams
from diffcompress.pipeline.load import LoadedPipeline
from diffcompress.runtime import free_memory

Recorder = Callable[[Tensor, Tensor, Tensor, Tensor], None]
# What calls of a denoiser take, by the shape of its samples and what it computes in.
_NEEDS: WeakKeyDictionary[nn.Module, dict[tuple[object, ...], Need]] = WeakKeyDictionary()


@torch.no_grad()
def sample(
    pipeline: LoadedPipeline,
    indices: Sequence[int],
    *,
    seed: int,
    num_steps: int,
    eta: float = 0.0,
    guidance: float = 1.0,
    jitter: bool = False,
    conditions: Tensor | None = None,
    record: Recorder | None = None,
) -> Tensor:
    """Clean samples `[len(indices), C, *spatial]` on the CPU, in one batch; latents, where the denoiser sees latents.

    Sample i follows from (seed, i) alone: its start, its steps' noise, its condition and its timestep grid.
    guidance: classifier-free guidance scale, of use where there is a null conditioning; 1: none. jitter shifts each
    sample's timestep grid at random. conditions `[len(indices)]`: rows of the pipeline's conditions in place of drawn
    ones. `record(noisy, timestep, prediction, conditions)` sees every denoiser call, with learned variances.
    """
    device = pipeline.device
    generators = [generator(seed, streams.NOISE, i) for i in indices]

    def draw() -> Tensor:
        return torch.stack([torch.randn(pipeline.sample_shape, generator=g) for g in generators]).to(device)

    rows = pipeline.conditions.draw(indices, seed) if conditions is None else conditions
    asked = [rows]
    if guidance != 1.0 and pipeline.conditions.null is not None:
        asked.append(pipeline.conditions.nulls(len(rows)))
    given = [_on(device, pipeline.conditions.rows(index)) for index in asked]
    noisy = draw()
    offset = torch.stack([torch.rand((), generator=g) for g in generators]) if jitter else torch.zeros(len(indices))
    grid = pipeline.noise.grid(num_steps, offset).to(device)
    for position in range(num_steps):
        timestep = grid[position]
        following = grid[position + 1] if position + 1 < num_steps else torch.full_like(timestep, -1)
        predictions = []
        for index, conditioning in zip(asked, given, strict=True):
            whole = pipeline.predict_all(noisy, timestep, conditioning)
            predictions.append(whole[:, : noisy.shape[1]])
            if record is not None:
                record(noisy, timestep, whole, index)
        prediction = predictions[0]
        if len(predictions) > 1:
            prediction = predictions[1] + guidance * (predictions[0] - predictions[1])
        fresh = draw() if eta > 0 else torch.zeros_like(noisy)
        noisy = pipeline.noise.step(prediction, noisy, timestep, following, eta, fresh)
    return noisy.cpu()


def conditioning_for(pipeline: LoadedPipeline, indices: Sequence[int], seed: int) -> dict[str, Tensor]:
    """The conditioning that `sample` draws for `indices`: tensors with a row each; empty for unconditional models."""
    return pipeline.conditions.rows(pipeline.conditions.draw(indices, seed))


def _on(device: torch.device, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.to(device) for name, value in tensors.items()}


@torch.no_grad()
def automatic_batch_size(pipeline: LoadedPipeline) -> int:
    """Rows of a denoiser call that the free memory holds; from memory alone, never timing.

    At most 64 on a CPU, where larger batches gain nothing; elsewhere 512, or 128 latents, as the host holds the
    pictures that they decode to.
    """

    def call(rows: int) -> Tensor:
        given = _on(pipeline.device, pipeline.conditions.rows(torch.zeros(rows, dtype=torch.long)))
        noisy = torch.zeros(rows, *pipeline.sample_shape, device=pipeline.device)
        return pipeline.predict_all(noisy, pipeline.noise.at(torch.zeros(rows)).to(pipeline.device), given)

    # Two calls of a large teacher take long, and all that draws from it asks.
    known, key = _NEEDS.setdefault(pipeline.denoiser, {}), (pipeline.sample_shape, pipeline.precision)
    if (need := known.get(key)) is None:
        need = known[key] = Need.of(call, pipeline.device)
    most = 64 if pipeline.device.type != "cuda" else 512 if pipeline.codec is None else 128
    return need.rows(free_memory(pipeline.device), most)
