"""`evaluate`: score a student, or any pipeline, against its teacher and, if given, real images; judge the gates."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from diffcompress import runtime as runtimes
from diffcompress.data import images
from diffcompress.errors import UsageError
from diffcompress.evaluation import gates as gating
from diffcompress.evaluation.features import FeatureSpace, RealImages, find_space
from diffcompress.evaluation.frechet import Moments
from diffcompress.evaluation.protocol import Protocol
from diffcompress.evaluation.score import METRICS, evaluate_pipeline
from diffcompress.recipe import EvaluationSection
from diffcompress.run_folder import read_json, write_json
from diffcompress.runtime import Progress
from diffcompress.teacher.load import LoadedPipeline, load
from diffcompress.teacher.reference import Reference, resolve

RESULT = "evaluation.json"
MOST_KERNEL_FEATURES = 2048


def evaluate(
    student: str,
    *,
    teacher: str | None = None,
    data: str | None = None,
    num_samples: int | None = None,
    sampler_steps: int | None = None,
    gates: Sequence[str] = (),
    output: str | Path | None = None,
    feature_weights: str | Path | None = None,
    junit: str | Path | None = None,
    seed: int = 0,
    device: str | None = None,
    progress: Progress | None = None,
    untrained: str | None = None,
    scheduler: str | None = None,
) -> dict[str, Any]:
    """`{"student", "teacher", "protocol", "metrics", "gates"}`, also written to `output`/evaluation.json.

    untrained: the student as it began, for comparison; scheduler: for denoiser folders that have none beside them.
    Whether a gate passed is in its "passed"; a failed gate is no exception. Drawn samples stay in `output`/cache,
    so the same call after a stop goes on. Raises UsageError for unusable input, before anything is sampled.
    """
    progress = progress or Progress()
    protocol_values = _checked(num_samples, sampler_steps, seed)
    models = [name for name, given in (("teacher", teacher), ("untrained", untrained)) if given is not None]
    parsed = gating.parse(gates, METRICS, models)
    student_reference = resolve(student, scheduler)
    folder = _output_folder(output, student_reference)
    runtime = runtimes.start(device)
    if not runtime.is_main:  # one process does it all
        runtime.wait()
        return read_json(folder / RESULT)
    loaded = load(student_reference, runtime.device)
    loaded_teacher = load(resolve(teacher, scheduler), runtime.device) if teacher is not None else None
    loaded_untrained = (
        load(resolve(untrained, scheduler or _scheduler_of(student_reference)), runtime.device)
        if untrained is not None
        else None
    )

    space = find_space(loaded_teacher, feature_weights)
    real = (
        images.read(Path(data), loaded.sample_shape, loaded.family.num_classes(loaded.config))
        if data is not None
        else None
    )
    if real is not None:
        for text in real.warnings:
            progress.warn(text)
    space = _prepared(space, loaded, real, protocol_values["num_samples"])
    protocol = Protocol.make(
        space, agreement_clean="data" if real is not None else "teacher samples", **protocol_values
    )
    _make(folder)
    runtime.stop.install()
    try:
        scored = evaluate_pipeline(
            loaded,
            loaded_teacher,
            protocol,
            space=space,
            cache_folder=folder / "cache",
            stop=runtime.stop,
            untrained=loaded_untrained,
            clean=real.clean if real is not None else None,
            conditioning=real.conditioning if real is not None else None,
            samples_folder=folder / "samples",
            progress=progress,
        )
    finally:
        runtime.stop.restore()
    verdicts = gating.judge(parsed, scored["metrics"])
    result = {"student": _about(loaded), "teacher": _about(loaded_teacher), **scored, "gates": verdicts}
    write_json(folder / RESULT, result)
    if junit is not None:
        _write_junit(Path(junit), verdicts, student_reference.name)
    runtime.wait()
    return result


def _checked(num_samples: int | None, sampler_steps: int | None, seed: int) -> dict[str, int]:
    defaults = EvaluationSection()
    values = {
        "num_samples": defaults.num_samples if num_samples is None else num_samples,
        "sampler_steps": defaults.sampler_steps if sampler_steps is None else sampler_steps,
    }
    for name, value in values.items():
        if value < 1:
            raise UsageError(
                f"--{name.replace('_', '-')} {value} is not a positive number",
                f"the default is {getattr(defaults, name)}",
            )
    if seed < 0:
        raise UsageError(f"--seed {seed} is negative", "use 0 or a positive number")
    return {**values, "seed": seed}


def _output_folder(output: str | Path | None, student: Reference) -> Path:
    if output is not None:
        return Path(output)
    if student.id.startswith("demo"):
        return Path(f"{student.name}-evaluation")  # the embedded teachers' own folder belongs to the installation
    return (student.pipeline or student.denoiser).resolve().parent / "evaluation"


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UsageError(f"cannot write to {folder}: {error.strerror}", "choose another --output") from error


def _write_junit(path: Path, verdicts: list[dict[str, Any]], name: str) -> None:
    try:
        gating.write_junit(path, verdicts, name)
    except OSError as error:
        raise UsageError(
            f"cannot write the gates' results to {path}: {error.strerror}", "choose another --junit"
        ) from error


def _scheduler_of(student: Reference) -> str | None:
    folder = student.pipeline / "scheduler" if student.pipeline is not None else None
    return str(folder) if folder is not None and folder.is_dir() else None


def _prepared(
    space: FeatureSpace | None, student: LoadedPipeline, real: images.Images | None, num_samples: int
) -> FeatureSpace | None:
    """The space, measuring to the user's images if there are any."""
    if space is None:
        return None
    if student.sample_shape != (1, 28, 28):
        raise UsageError(
            f"the feature extractor reads 1x28x28 images, the student makes {'x'.join(map(str, student.sample_shape))}",
            "leave out --feature-weights, or compare with a teacher of the student's data format",
        )
    if num_samples < 2 * space.dimension:
        raise UsageError(
            f"--num-samples {num_samples} is too few for a Frechet distance of {space.dimension} features",
            f"use {2 * space.dimension} or more",
        )
    if real is None:
        return space
    if len(real.clean) < 2 * space.dimension:
        raise UsageError(
            f"{len(real.clean)} real images are too few to compare with",
            f"give {2 * space.dimension} or more with --data",
        )
    features = space.features(real.clean)
    digest = hashlib.sha256(real.clean.numpy().tobytes()).hexdigest()
    return replace(
        space, real=RealImages("data", digest, Moments.of(features), features[:MOST_KERNEL_FEATURES]), held_out=None
    )


def _about(model: LoadedPipeline | None) -> dict[str, Any] | None:
    if model is None:
        return None
    params = sum(p.numel() for p in model.denoiser.parameters())
    return {
        "id": model.reference.id,
        "class": model.family.class_name,
        "params": params,
        "fingerprint": model.fingerprint,
    }
