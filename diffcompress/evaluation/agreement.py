"""Agreement: how close the student's predictions are to the teacher's on equal inputs, per noise level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffcompress.evaluation.frechet import mean_estimate
from diffcompress.evaluation.material import Material
from diffcompress.losses.fit import fit_line
from diffcompress.noise import generator, streams
from diffcompress.pipeline.load import LoadedPipeline
from diffcompress.pipeline.predicting import in_terms_of
from diffcompress.pipeline.sampling import automatic_batch_size
from diffcompress.records.evaluation import Level, Metrics
from diffcompress.records.metrics import Estimate, Metric
from diffcompress.runtime import Runtime


@dataclass(frozen=True)
class Agreement:
    """agreement: 1 - mean over levels of error / variance of the teacher's prediction, in (-inf, 1]; 1 is perfect."""

    agreement: Estimate
    levels: tuple[Level, ...]


def add_metrics(material: Material, wanted: Sequence[Metric], metrics: Metrics) -> None:
    """Of all models whose predictions can be laid beside the teacher's."""
    models, protocol = material.models, material.protocol
    teacher = models["teacher"]
    if (why := why_incomparable(models["student"], teacher)) is not None:
        metrics.skip((metric.name for metric in wanted), why)
        return
    assert material.inputs is not None
    clean, conditioning = material.inputs
    found = measure(
        {role: one for role, one in models.items() if role != "teacher" and why_incomparable(one, teacher) is None},
        teacher,
        clean,
        conditioning,
        num_levels=protocol.agreement_levels,
        seed=protocol.seed,
        batch_size=automatic_batch_size(teacher),
        runtime=material.runtime,
    )
    values = {role: one.agreement for role, one in found.items()}
    for metric in wanted:
        metrics.add(metric, values, levels=list(found["student"].levels), samples=len(clean))


def why_incomparable(student: LoadedPipeline, teacher: LoadedPipeline) -> str | None:
    """Why predictions of the two cannot be laid side by side, if so."""
    if not student.noise.same_as(teacher.noise):
        return "student and teacher have different noise schedules"
    if student.family.num_classes(student.config) != teacher.family.num_classes(teacher.config):
        return "student and teacher take different class labels"
    return None


@torch.no_grad()
def measure(
    students: Mapping[str, LoadedPipeline],
    teacher: LoadedPipeline,
    clean: Tensor,
    conditioning: Mapping[str, Tensor],
    *,
    num_levels: int,
    seed: int,
    batch_size: int = 128,
    runtime: Runtime | None = None,
) -> dict[str, Agreement]:
    """Agreement of each of `students` by its name. Every clean image `[N, C, *spatial]` is noised once per level.

    Whatever a student predicts is compared in the teacher's terms. Timestep and noise follow from (seed, level, image)
    alone. runtime: see `predictions`.
    """
    num_levels = min(num_levels, teacher.noise.num_timesteps)
    students = {name: in_terms_of(student, teacher.noise) for name, student in students.items()}
    ratios: dict[str, list[Tensor]] = {name: [] for name in students}
    levels: dict[str, list[Level]] = {name: [] for name in students}
    for level in range(num_levels):
        noisy, timestep = _inputs(teacher, clean, level, num_levels, seed)
        edges = teacher.noise.at(torch.tensor([level + 1e-6, level + 1 - 1e-6]).double() / num_levels)
        low, high = (int(edge) for edge in edges)
        theirs = predictions(teacher, noisy, timestep, conditioning, batch_size, runtime)
        for name, student in students.items():
            ours = predictions(student, noisy, timestep, conditioning, batch_size, runtime)
            ratios[name].append(error_ratio(ours, theirs))
            levels[name].append(_level(low, high, ours, theirs))
    means = {name: torch.stack(ratios[name]).mean(0) for name in students}
    return {name: Agreement(agreement_of(mean, seed), tuple(levels[name])) for name, mean in means.items()}


def _level(low: int, high: int, ours: Tensor, theirs: Tensor) -> Level:
    channels = theirs.flatten(2)
    line = fit_line(ours.flatten(2).unsqueeze(2), channels.unsqueeze(2), channels.var(-1, correction=0))
    error = (ours - theirs).square().mean()
    relative = (error / theirs.square().mean()).sqrt()
    return Level(
        timestep_low=low,
        timestep_high=high,
        error=error.item(),
        relative_error=relative.item(),
        slope=1 + line.tilt.mean().item(),
        intercept=line.intercept.mean().item(),
    )


def error_ratio(ours: Tensor, theirs: Tensor) -> Tensor:
    """Of predictions `[N, C, *spatial]`, by sample `[N]`: mean squared error over the variance of all of theirs."""
    return (ours - theirs).square().flatten(1).mean(1) / theirs.var(correction=0)


def agreement_of(ratios: Tensor, seed: int) -> Estimate:
    """1 - the mean of `error_ratio` `[N]`, at most 1."""
    value, low, high = mean_estimate(1 - ratios, seed=seed)
    return Estimate(value, low, min(high, 1.0))


def _inputs(teacher: LoadedPipeline, clean: Tensor, level: int, num_levels: int, seed: int) -> tuple[Tensor, Tensor]:
    drawn = [generator(seed, streams.AGREEMENT, level, i) for i in range(len(clean))]
    share = torch.stack([torch.rand((), generator=one, dtype=torch.float64) for one in drawn])
    timestep = teacher.noise.at((level + share) / num_levels)
    noise = torch.stack([torch.randn(clean.shape[1:], generator=one) for one in drawn])
    return teacher.noise.noisy(clean, noise, timestep), timestep


def predictions(
    pipeline: LoadedPipeline,
    noisy: Tensor,
    timestep: Tensor,
    conditioning: Mapping[str, Tensor],
    batch_size: int,
    runtime: Runtime | None = None,
) -> Tensor:
    """Predictions `[N, C, *spatial]` of a model for noisy samples, in float64 on the CPU.

    runtime: of processes that all ask, and each compute a part.
    """
    share = slice(0, len(noisy)) if runtime is None else runtime.share(len(noisy))
    found = torch.zeros(noisy.shape, dtype=torch.float64)
    for start in range(share.start, share.stop, batch_size):
        rows = slice(start, min(start + batch_size, share.stop))
        given = {name: value[rows].to(pipeline.device) for name, value in conditioning.items()}
        noise, time = noisy[rows].to(pipeline.device), timestep[rows].to(pipeline.device)
        found[rows] = pipeline.predict(noise, time, given).cpu().double()
    return found if runtime is None else runtime.total(found)
