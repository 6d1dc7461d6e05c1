"""Distances of drawn samples in a feature space: to real images, and to the teacher's samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor

from diffcompress.evaluation.features import RealImages
from diffcompress.evaluation.frechet import Moments, frechet_distance, kernel_distance
from diffcompress.evaluation.material import Material
from diffcompress.records.evaluation import Metrics
from diffcompress.records.metrics import KINDS, Estimate, Metric

FEWEST_FOR_FID = 10_000
FRECHET, FRECHET_TO_TEACHER = KINDS["fd"], KINDS["fd_teacher"]


def add_metrics(material: Material, wanted: Sequence[Metric], metrics: Metrics) -> None:
    """Frechet and kernel distances; a Frechet distance of too few samples is told to be missing."""
    for metric in wanted:
        if metric.kind in (FRECHET, FRECHET_TO_TEACHER):
            _add_frechet(material, metric, metrics)
        else:
            _add_kernel(material, metric, metrics)


def called(metric: Metric, num_samples: int, num_real: int) -> Metric:
    """`fid` only for what the word means: Inception's features of 10,000 samples or more; otherwise fd_<space>."""
    is_fid = metric == Metric(FRECHET, "inception") and min(num_samples, num_real) >= FEWEST_FOR_FID
    return Metric(KINDS["fid"]) if is_fid else metric


def _add_frechet(material: Material, metric: Metric, metrics: Metrics) -> None:
    protocol, more, real = material.protocol, material.counted, _real(material, metric)
    why = _too_few(protocol.num_samples, "samples", "--num-samples", material)
    if real is None:  # the teacher's samples, drawn from the same noise
        moments, sets = Moments.of(material.features["teacher"]), material.others("teacher")
        more["reference"] = "teacher samples"
    else:
        metric = called(metric, protocol.num_samples, real.count)
        why = why or _too_few(real.count, "real images", "--data", material)
        moments, sets = real.moments, material.others(*(["corrected"] if metric.held_out else []))
        more["reference"] = real.name
        if real.other is not None:
            sets["real"] = real.other[: protocol.num_samples]
            more["real_samples"] = len(sets["real"])
    if why is not None:
        metrics.skip((metric.name,), why)
        return
    distance = partial(frechet_distance, reference=moments, seed=protocol.seed)
    found = {role: distance(value) for role, value in sets.items()}
    metrics.add(metric, found, as_many=material.as_many(sets, distance), **more)


def _add_kernel(material: Material, metric: Metric, metrics: Metrics) -> None:
    real, seed = _real(material, metric), material.protocol.seed
    distance: Callable[[Tensor], Estimate]
    if real is None:
        theirs, (sets, more) = material.features["teacher"], material.to_teacher()

        def distance(value: Tensor) -> Estimate:
            return kernel_distance(value, theirs[: len(value)], seed=seed, paired=True)
    else:
        sets, more = material.to_real(real)
        distance = partial(kernel_distance, reference=real.features, seed=seed)
    found = {role: distance(value) for role, value in sets.items()}
    metrics.add(metric, found, as_many=material.as_many(sets, distance), **more)


def _real(material: Material, metric: Metric) -> RealImages | None:
    """The real images that `metric` compares with, None for the teacher's samples."""
    if metric.kind.to == "teacher":
        return None
    return material.in_space.held_out if metric.held_out else material.in_space.real


def _too_few(count: int, what: str, option: str, material: Material) -> str | None:
    dimension = material.in_space.dimension
    if count >= 2 * dimension:
        return None
    return (
        f"{count} {what} are too few for a Frechet distance of {dimension} features: "
        f"{option} of {2 * dimension} or more"
    )
