"""Score a student against its teacher: every metric of one protocol, ready for metrics.json, gates and the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from diffcompress.errors import UsageError
from diffcompress.evaluation import agreement, speed
from diffcompress.evaluation.cache import Drawn, SampleCache
from diffcompress.evaluation.failed import failed_share
from diffcompress.evaluation.features import FeatureSpace, RealImages
from diffcompress.evaluation.frechet import Estimate, frechet_distance, kernel_distance, mean_estimate
from diffcompress.evaluation.protocol import Protocol
from diffcompress.run_folder import write_atomically
from diffcompress.runtime import Progress, StopRequest
from diffcompress.sampling import conditioning_for
from diffcompress.teacher.load import LoadedPipeline

NUM_SAVED = 64
ROLES = ("student", "teacher", "untrained")
METRICS = (
    "params",
    "macs",
    "latency_ms",
    "latency_ms_batch16",
    "memory_bytes",
    "agreement",
    "fd",
    "kd",
    "fd_demo",
    "kd_demo",
    "fd_demo_held_out",
    "failed_samples",
    "paired_distance",
)


@dataclass
class Metrics:
    """Metrics of one evaluation, and what was not computed and why."""

    values: dict[str, dict[str, Any]] = field(default_factory=dict)
    missing: list[dict[str, str]] = field(default_factory=list)

    def add(self, name: str, unit: str, better: str | None, found: Mapping[str, Estimate | float], **more: Any) -> None:
        """`found`: this metric by role (student, teacher, untrained, real). Values that are not finite are not kept."""
        if not isfinite(_parts(found["student"])["value"]):
            self.skip((name,), "the student's outputs are not finite")
            return
        found = {role: value for role, value in found.items() if isfinite(_parts(value)["value"])}
        parts = {role: _parts(value) for role, value in found.items()}
        student = parts.pop("student")
        others: dict[str, Any] = {role: parts.get(role) for role in ("teacher", "untrained", "real")}
        self.values[name] = {**student, "unit": unit, "better": better, **others, **more}

    def skip(self, names: tuple[str, ...], why: str) -> None:
        self.missing += [{"metric": name, "why": why} for name in names]

    def to_json(self) -> dict[str, Any]:
        return {**self.values, "not_computed": self.missing}


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
) -> dict[str, Any]:
    """`{"protocol", "metrics"}` of `student`, with the teacher's and the untrained student's values beside.

    space: where distances are measured (features.find_space); clean `[N, C, *spatial]` with its conditioning: inputs of
    agreement, else the teacher's own samples; samples_folder: receives teacher.safetensors and student.safetensors,
    `images` of the same noise. Drawn samples stay in `cache_folder`, so the same call after a stop goes on.
    One process does it all. Raises UsageError when student and teacher make samples of different shapes, RunStopped or
    RunInterrupted between batches.
    """
    models = {
        role: model for role, model in zip(ROLES, (student, teacher, untrained), strict=True) if model is not None
    }
    for role, model in models.items():
        if model.sample_shape != student.sample_shape:
            ours, theirs = list(student.sample_shape), list(model.sample_shape)
            raise UsageError(
                f"the student makes samples of shape {ours}, the {role} of shape {theirs}",
                "compare models of one data format",
            )
    if space is not None:
        space.extractor.to(student.device)
    metrics = Metrics()
    _add_costs(metrics, models)
    drawn: dict[str, Drawn] = {}
    if teacher is not None or space is not None:
        cache = SampleCache(cache_folder, stop or StopRequest(), progress or Progress())
        drawn = {role: cache.draw(model, protocol, space, f"sampling the {role}") for role, model in models.items()}
    _add_distances(metrics, drawn, space, protocol)
    if teacher is None:
        metrics.skip(("agreement", "failed_samples", "paired_distance"), "no teacher was given")
    else:
        if clean is None:
            clean = drawn["teacher"].images
            conditioning = conditioning_for(teacher, range(len(clean)), protocol.sampling_seed)
        inputs = (
            clean[: protocol.agreement_images],
            {n: v[: protocol.agreement_images] for n, v in (conditioning or {}).items()},
        )
        _add_agreement(metrics, models, inputs, protocol)
        _add_sample_checks(metrics, drawn, protocol.seed)
    if samples_folder is not None:
        for role in ROLES:
            if role in drawn:
                _save_images(samples_folder / f"{role}.safetensors", drawn[role].images[:NUM_SAVED])
    return {"protocol": protocol.to_json(), "metrics": metrics.to_json()}


def _add_costs(metrics: Metrics, models: Mapping[str, LoadedPipeline]) -> None:
    costs = {role: speed.measure(model) for role, model in models.items() if role != "untrained"}
    where = {"device": costs["student"].device, "threads": costs["student"].threads}
    metrics.add("params", "parameters", "lower", {role: cost.params for role, cost in costs.items()})
    metrics.add("macs", "multiply-accumulates", "lower", {role: cost.macs for role, cost in costs.items()})
    for size, name in zip(speed.BATCH_SIZES, ("latency_ms", "latency_ms_batch16"), strict=True):
        metrics.add(
            name,
            "ms per call",
            "lower",
            {role: cost.latency_ms[size] for role, cost in costs.items()},
            batch_size=size,
            **where,
        )
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
    found = agreement.measure(students, teacher, *inputs, num_levels=protocol.agreement_levels, seed=protocol.seed)
    levels = {"levels": found["student"].levels_json(), "samples": len(inputs[0])}
    metrics.add("agreement", "", "higher", {role: value.agreement for role, value in found.items()}, **levels)


def _add_distances(
    metrics: Metrics, drawn: Mapping[str, Drawn], space: FeatureSpace | None, protocol: Protocol
) -> None:
    if space is None:
        metrics.skip(("fd", "kd"), "no feature extractor fits these images; name one with --feature-weights")
        return
    names = (f"fd_{space.name}", f"kd_{space.name}")
    if space.real is None:
        metrics.skip(names, f"there are no statistics of real images for the extractor '{space.name}'; add --data")
        return
    if drawn["student"].num_broken:
        metrics.skip(names, f"{drawn['student'].num_broken} of {protocol.num_samples} samples are not finite")
        return
    references = [(space.real, names)] + ([(space.held_out, (f"{names[0]}_held_out",))] if space.held_out else [])
    for real, wanted in references:
        if protocol.num_samples < 2 * space.dimension:
            metrics.skip(
                wanted[:1], f"{protocol.num_samples} samples are too few: it takes {2 * space.dimension} or more"
            )
        else:
            _add_distance(metrics, wanted[0], "squared feature units", drawn, real, protocol)
        if len(wanted) > 1:
            _add_distance(metrics, wanted[1], "squared kernel units", drawn, real, protocol)


def _add_distance(
    metrics: Metrics, name: str, unit: str, drawn: Mapping[str, Drawn], real: RealImages, protocol: Protocol
) -> None:
    def distance(features: Tensor) -> Estimate:
        if name.startswith("kd_"):
            return kernel_distance(features, real.features, seed=protocol.seed)
        return frechet_distance(features, real.moments, seed=protocol.seed)

    found = {
        role: distance(one.features) for role, one in drawn.items() if one.features is not None and not one.num_broken
    }
    more: dict[str, Any] = {"samples": protocol.num_samples, "reference": real.name}
    if real.other is not None:
        other = real.other[: protocol.num_samples]
        found["real"] = distance(other)
        more["real_samples"] = len(other)
    metrics.add(name, unit, "lower", found, **more)


def _add_sample_checks(metrics: Metrics, drawn: Mapping[str, Drawn], seed: int) -> None:
    teacher = drawn["teacher"]
    failed = {role: failed_share(one.variation, teacher.variation) for role, one in drawn.items()}
    metrics.add("failed_samples", "share of samples", "lower", failed, samples=len(teacher.variation))
    if drawn["student"].num_broken:
        metrics.skip(("paired_distance",), f"{drawn['student'].num_broken} samples are not finite")
        return
    apart = {
        role: mean_estimate((one.images - teacher.images).square().flatten(1).mean(1).sqrt(), seed=seed)
        for role, one in drawn.items()
        if role != "teacher" and not one.num_broken
    }
    metrics.add("paired_distance", "rms pixel difference", "lower", apart, samples=len(teacher.images))


def _parts(value: Estimate | float) -> dict[str, Any]:
    if isinstance(value, Estimate):
        return value._asdict()
    return {"value": value, "low": None, "high": None}


def _save_images(path: Path, images: Tensor) -> None:
    write_atomically(path, lambda part: save_file({"images": images.to(torch.float32).contiguous()}, part))
