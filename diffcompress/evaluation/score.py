"""Score a student against its teacher: every metric of one protocol, ready for metrics.json, gates and the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffcompress.errors import UsageError
from diffcompress.evaluation import agreement, correction, speed
from diffcompress.evaluation.cache import Drawn, SampleCache
from diffcompress.evaluation.distances import add_distances
from diffcompress.evaluation.doubts import beats_teacher
from diffcompress.evaluation.failed import failed_share
from diffcompress.evaluation.features import FeatureSpace
from diffcompress.evaluation.frechet import mean_estimate
from diffcompress.noise import streams
from diffcompress.pipeline.load import LoadedPipeline
from diffcompress.pipeline.predicting import in_terms_of
from diffcompress.pipeline.sampling import automatic_batch_size, conditioning_for
from diffcompress.records.metrics import NO_TEACHER, PROBE, ROLES, SAMPLE_CHECKS, Metrics
from diffcompress.records.protocol import Protocol
from diffcompress.records.run_files import write_tensors
from diffcompress.runtime import Progress, StopRequest

NUM_SAVED = 64


def evaluate_pipeline(
    student: LoadedPipeline,
    teacher: LoadedPipeline | None,
    protocol: Protocol,
    *,
    space: FeatureSpace | None,
    cache_folder: Path,
    stop: StopRequest | None = None,
    untrained: LoadedPipeline | None = None,
    clean: Tensor | None = None,
    conditioning: Mapping[str, Tensor] | None = None,
    samples_folder: Path | None = None,
    progress: Progress | None = None,
    quality_alone: bool = False,
) -> dict[str, Any]:
    """`{"protocol", "metrics", "probe", "warnings"}` of `student`, with the teacher's and untrained student's beside.

    space: where distances are measured (features.find_space); clean `[N, C, *spatial]` with its conditioning: inputs of
    agreement, else the teacher's own samples; samples_folder: receives teacher.safetensors and student.safetensors,
    `images` of the same noise. Drawn samples stay in `cache_folder`, so the same call after a stop goes on. probe: see
    correction.verdict; warnings: reasons to doubt; quality_alone: neither probe nor costs. One process does it all.
    Raises UsageError when student and teacher make samples of different shapes, RunStopped or RunInterrupted between
    batches.
    """
    models = {
        role: model for role, model in zip(ROLES, (student, teacher, untrained), strict=True) if model is not None
    }
    _check_shapes(models)
    if space is not None:
        for one in (space, space.clip):
            if one is not None:
                one.extractor.to(student.device)
    metrics = Metrics()
    if not quality_alone:
        _add_costs(metrics, models)
    drawn: dict[str, Drawn] = {}
    if teacher is not None or space is not None:
        cache = SampleCache(cache_folder, stop or StopRequest(), progress or Progress())
        drawn = {role: cache.draw(model, protocol, space, f"sampling the {role}") for role, model in models.items()}
        if teacher is not None and not quality_alone:
            _draw_corrected(drawn, metrics, student, teacher, protocol, space, cache)
    add_distances(metrics, drawn, space, protocol, _prompts(student, protocol))
    if teacher is None:
        metrics.skip(("agreement", *SAMPLE_CHECKS, PROBE), NO_TEACHER)
    else:
        if clean is None:
            clean = drawn["teacher"].images
            conditioning = conditioning_for(teacher, range(len(clean)), protocol.sampling_seed)
        first = slice(protocol.agreement_images)
        inputs = clean[first], {name: value[first] for name, value in (conditioning or {}).items()}
        _add_agreement(metrics, models, inputs, protocol)
        _add_sample_checks(metrics, drawn, protocol.seed)
    if samples_folder is not None:
        for role in ROLES:
            if role in drawn:
                images = drawn[role].pixels[:NUM_SAVED].to(torch.float32)
                write_tensors(samples_folder / f"{role}.safetensors", {"images": images})
    name = space.name if space is not None else None
    return {
        "protocol": protocol.to_json(),
        "metrics": metrics.to_json(),
        "probe": correction.verdict(metrics.values, name),
        "warnings": beats_teacher(metrics.values),
    }


def _check_shapes(models: Mapping[str, LoadedPipeline]) -> None:
    ours = models["student"].sample_shape
    for role, model in models.items():
        if model.sample_shape != ours:
            raise UsageError(
                f"the student makes samples of shape {list(ours)}, the {role} of shape {list(model.sample_shape)}",
                "compare models of one data format",
            )


def _prompts(pipeline: LoadedPipeline, protocol: Protocol) -> list[str] | None:
    """The prompt of each sample, None without text."""
    texts = pipeline.conditions.texts
    rows = pipeline.conditions.draw(range(protocol.num_samples), protocol.sampling_seed)
    return [texts[row] for row in rows.tolist()] if texts else None


def _draw_corrected(
    drawn: dict[str, Drawn],
    metrics: Metrics,
    student: LoadedPipeline,
    teacher: LoadedPipeline,
    protocol: Protocol,
    space: FeatureSpace | None,
    cache: SampleCache,
) -> None:
    why = agreement.why_incomparable(student, teacher)
    if why is None:
        probed = _corrected(student, teacher, protocol, cache)
        drawn["corrected"] = cache.draw(probed, protocol, space, "sampling the corrected student")
        if drawn["corrected"].num_broken:
            why = "samples of the corrected student are not finite"
    if why is not None:
        metrics.skip((PROBE,), why)


def _corrected(
    student: LoadedPipeline, teacher: LoadedPipeline, protocol: Protocol, cache: SampleCache
) -> LoadedPipeline:
    """The student behind its best lines to the teacher, fitted on teacher samples that nothing is evaluated on."""
    apart = replace(
        protocol,
        seed=protocol.seed + streams.PROBE_SEED_SHIFT,
        num_samples=min(correction.NUM_IMAGES, protocol.num_samples),
        feature_space=None,
        extractor=None,
        reference=None,
    )
    clean = cache.draw(teacher, apart, None, "sampling the teacher for the probe").images
    conditioning = conditioning_for(teacher, range(len(clean)), apart.sampling_seed)
    student = in_terms_of(student, teacher.noise)
    steps, seed = protocol.sampler_steps, protocol.seed
    return correction.corrected(
        student, correction.fit(student, teacher, clean, conditioning, num_steps=steps, seed=seed)
    )


def _add_costs(metrics: Metrics, models: Mapping[str, LoadedPipeline]) -> None:
    costs = {role: speed.measure(model) for role, model in models.items() if role != "untrained"}
    where: dict[str, Any] = {"device": costs["student"].device, "threads": costs["student"].threads}
    # A large teacher stays in half precision on an accelerator: such times are not of equals.
    dtypes = {role: cost.dtype for role, cost in costs.items()}
    if len(set(dtypes.values())) > 1:
        where["dtypes"] = dtypes
    metrics.add("params", "parameters", "lower", {role: cost.params for role, cost in costs.items()})
    metrics.add("size_bytes", "bytes", "lower", {role: cost.size_bytes for role, cost in costs.items()})
    metrics.add("macs", "multiply-accumulates", "lower", {role: cost.macs for role, cost in costs.items()})
    for size, name in zip(speed.BATCH_SIZES, ("latency_ms", "latency_ms_batch16"), strict=True):
        measured = {role: cost.latency_ms[size] for role, cost in costs.items()}
        found = {role: value for role, value in measured.items() if value is not None}
        if "student" in found:
            metrics.add(name, "ms per call", "lower", found, batch_size=size, **where)
        else:
            metrics.skip((name,), f"calls with a batch of {size} take too long here or do not fit in memory")
    metrics.add("memory_bytes", "bytes", "lower", {role: cost.memory_bytes for role, cost in costs.items()}, **where)


def _add_agreement(
    metrics: Metrics,
    models: Mapping[str, LoadedPipeline],
    inputs: tuple[Tensor, Mapping[str, Tensor]],
    protocol: Protocol,
) -> None:
    teacher = models["teacher"]
    why = agreement.why_incomparable(models["student"], teacher)
    if why is not None:
        metrics.skip(("agreement",), why)
        return
    students = {
        role: model
        for role, model in models.items()
        if role != "teacher" and agreement.why_incomparable(model, teacher) is None
    }
    found = agreement.measure(
        students,
        teacher,
        *inputs,
        num_levels=protocol.agreement_levels,
        seed=protocol.seed,
        batch_size=automatic_batch_size(teacher),
    )
    levels = {"levels": found["student"].levels_json(), "samples": len(inputs[0])}
    metrics.add("agreement", "", "higher", {role: value.agreement for role, value in found.items()}, **levels)


def _add_sample_checks(metrics: Metrics, drawn: Mapping[str, Drawn], seed: int) -> None:
    teacher = drawn["teacher"]
    if teacher.num_broken:
        metrics.skip(SAMPLE_CHECKS, f"{teacher.num_broken} samples of the teacher are not finite")
        return
    failed = {role: failed_share(one.variation, teacher.variation) for role, one in drawn.items()}
    metrics.add("failed_samples", "share of samples", "lower", failed, samples=len(teacher.variation))
    if drawn["student"].num_broken:
        metrics.skip(("paired_distance",), f"{drawn['student'].num_broken} samples are not finite")
        return
    apart = {
        role: mean_estimate((one.pixels - teacher.pixels).square().flatten(1).mean(1).sqrt(), seed=seed)
        for role, one in drawn.items()
        if role != "teacher" and not one.num_broken
    }
    metrics.add("paired_distance", "rms pixel difference", "lower", apart, samples=len(teacher.pixels))
