"""What one denoiser call costs: parameters, multiply-accumulates, milliseconds, bytes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from diffcompress.evaluation.material import Material
from diffcompress.memory import peak
from diffcompress.pipeline.load import LoadedPipeline
from diffcompress.records.evaluation import Metrics
from diffcompress.records.metrics import Metric
from diffcompress.runtime import dtype_name, seconds_of
from diffcompress.student import costs

LATENCIES = {"latency_ms": 1, "latency_ms_batch16": 16}
BATCH_SIZES = tuple(LATENCIES.values())
MOST_REPEATS, FEWEST_REPEATS, SECONDS = 20, 5, 1.5
LONGEST_SECONDS = 20.0


@dataclass(frozen=True)
class Speed:
    """params: of the denoiser, no buffers; size_bytes: of its tensors in their stored dtype; macs:
    multiply-accumulates of a call at batch 1; latency_ms: median per call at each of `BATCH_SIZES`, None where it would
    take too long; memory_bytes: weights and peak activations of a call at batch 1; threads: of the CPU; dtype: that the
    denoiser computes in."""

    params: int
    size_bytes: int
    macs: int
    latency_ms: dict[int, float | None]
    memory_bytes: int
    threads: int
    device: str
    dtype: str


def add_metrics(material: Material, wanted: Sequence[Metric], metrics: Metrics) -> None:
    """Of student and teacher; the untrained student costs what the student does."""
    found = {role: measure(model) for role, model in material.models.items() if role != "untrained"}
    where: dict[str, Any] = {"device": found["student"].device, "threads": found["student"].threads}
    # A large teacher stays in half precision on an accelerator: such times are not of equals.
    dtypes = {role: cost.dtype for role, cost in found.items()}
    if len(set(dtypes.values())) > 1:
        where["dtypes"] = dtypes
    for metric in wanted:
        name = metric.kind.name
        if (batch := LATENCIES.get(name)) is None:
            values = {role: getattr(cost, name) for role, cost in found.items()}
            metrics.add(metric, values, **(where if name == "memory_bytes" else {}))
            continue
        times = {role: taken for role, cost in found.items() if (taken := cost.latency_ms[batch]) is not None}
        if "student" in times:
            metrics.add(metric, times, batch_size=batch, **where)
        else:
            why = f"calls with a batch of {batch} take too long here or do not fit in memory"
            metrics.skip((metric.name,), why)


def measure(pipeline: LoadedPipeline) -> Speed:
    """Cost of one call of `pipeline`'s denoiser, on the device it lies on."""
    return Speed(
        sum(p.numel() for p in pipeline.denoiser.parameters()),
        sum(value.numel() for value in pipeline.denoiser.state_dict().values()) * pipeline.dtype.itemsize,
        costs.count(pipeline.family, pipeline.config).macs,
        _latencies(pipeline),
        _memory(pipeline),
        torch.get_num_threads(),
        pipeline.device.type,
        dtype_name(pipeline.precision),
    )


def _call(pipeline: LoadedPipeline, batch: int) -> Callable[[], Tensor]:
    conditioning = pipeline.example_inputs(batch)
    noisy, timestep = conditioning.pop("noisy"), conditioning.pop("timestep")
    return lambda: pipeline.predict_all(noisy, timestep, conditioning)


def _latencies(pipeline: LoadedPipeline) -> dict[int, float | None]:
    """A batch that would keep the user waiting, by the time of one sample, or that memory cannot hold is left out."""
    found: dict[int, float | None] = {}
    for size in BATCH_SIZES:
        alone = found.get(1)
        slow = alone is not None and alone / 1000 * size * FEWEST_REPEATS > LONGEST_SECONDS
        try:
            found[size] = None if slow else _latency(pipeline, size)
        except torch.cuda.OutOfMemoryError:
            found[size] = None
    return found


@torch.no_grad()
def _latency(pipeline: LoadedPipeline, batch: int) -> float:
    """Median milliseconds of some calls; a call of many seconds is made twice only, the first to warm up."""
    call = _call(pipeline, batch)
    warm_up = seconds_of(call, pipeline.device)
    fewest = 1 if warm_up * FEWEST_REPEATS > LONGEST_SECONDS else FEWEST_REPEATS
    times: list[float] = []
    started = time.perf_counter()
    while len(times) < fewest or (len(times) < MOST_REPEATS and time.perf_counter() - started < SECONDS):
        times.append(seconds_of(call, pipeline.device))
    return median(times) * 1000


@torch.no_grad()
def _memory(pipeline: LoadedPipeline) -> int:
    # Those that stay on disk take what a call reads of them at once, which is in its peak.
    weights = sum(p.nbytes for p in pipeline.denoiser.parameters() if not p.is_meta)
    return weights + peak(_call(pipeline, 1), pipeline.device)
