"""Score a student against its teacher: every metric of one protocol, ready for metrics.json, gates and the report."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from diffcompress.errors import UsageError
from diffcompress.evaluation import agreement, correction
from diffcompress.evaluation.cache import Drawn, SampleCache
from diffcompress.evaluation.doubts import doubts
from diffcompress.evaluation.features import FeatureSpace
from diffcompress.evaluation.material import Material
from diffcompress.noise import streams
from diffcompress.pipeline.load import LoadedPipeline
from diffcompress.pipeline.predicting import in_terms_of
from diffcompress.pipeline.sampling import conditioning_for
from diffcompress.records import layout
from diffcompress.records.evaluation import Metrics, Scores
from diffcompress.records.metrics import NO_TEACHER, PROBE, ROLES, TABLE, Kind
from diffcompress.records.protocol import Protocol
from diffcompress.records.run_files import write_tensors

NUM_SAVED = 64


@dataclass(frozen=True)
class Contest:
    """Who is scored beside whom, and how. space: where distances are measured (features.find_space)."""

    student: LoadedPipeline
    teacher: LoadedPipeline | None
    protocol: Protocol
    space: FeatureSpace | None
    untrained: LoadedPipeline | None = None

    @property
    def models(self) -> dict[str, LoadedPipeline]:
        """By role."""
        found = zip(ROLES, (self.student, self.teacher, self.untrained), strict=True)
        return {role: model for role, model in found if model is not None}


def evaluate_pipeline(
    contest: Contest,
    cache: SampleCache,
    *,
    clean: Tensor | None = None,
    conditioning: Mapping[str, Tensor] | None = None,
    samples_folder: Path | None = None,
    quality_alone: bool = False,
) -> Scores:
    """Protocol, metrics, probe and warnings of the student, with the teacher's and untrained student's beside.

    clean `[N, C, *spatial]` with its conditioning: inputs of agreement, else the teacher's own samples; samples_folder:
    receives teacher.safetensors and student.safetensors, `images` of the same noise. Drawn samples stay in the folder
    of `cache`, so the same call after a stop goes on. probe: see correction.verdict; warnings: reasons to doubt;
    quality_alone: neither probe nor costs. All processes of `cache` call it and do a part each; what a call costs is
    measured, and files are written, by the main one alone. Raises UsageError when the models make samples of different
    shapes, RunStopped or RunInterrupted between batches.
    """
    teacher, space, protocol, runtime = contest.teacher, contest.space, contest.protocol, cache.runtime
    metrics = Metrics(not_computed=[])
    drawn = _draw(contest, cache, metrics, quality_alone=quality_alone)
    inputs = None if teacher is None else _inputs(teacher, drawn["teacher"], protocol, clean, conditioning)
    prompts = _prompts(contest.student, protocol)
    material = Material(contest.models, drawn, space, protocol, prompts, inputs, runtime)
    with_costs = runtime.is_main and not quality_alone
    measure(material, metrics, [kind for kind in TABLE if with_costs or not kind.is_cost])
    if teacher is None:
        metrics.skip((PROBE,), NO_TEACHER)
    if samples_folder is not None and runtime.is_main:
        for role in ROLES:
            if role in drawn:
                images = drawn[role].pixels[:NUM_SAVED].to(torch.float32)
                write_tensors(samples_folder / layout.of_role(role), {"images": images})
    return Scores(
        protocol=protocol,
        metrics=metrics,
        probe=correction.verdict(metrics, space.name if space is not None else None),
        warnings=doubts(metrics),
    )


def _draw(contest: Contest, cache: SampleCache, metrics: Metrics, *, quality_alone: bool) -> dict[str, Drawn]:
    """Samples by role, with those of the student behind its probe; what cannot be had of them is named in `metrics`."""
    models, space, protocol = contest.models, contest.space, contest.protocol
    _check_shapes(models)
    if space is not None:
        space.to(contest.student.device)
    if contest.teacher is None and space is None:
        return {}
    beside = _aside(protocol)
    drawn = {
        role: cache.draw(model, beside if role == "untrained" else protocol, space, f"sampling the {role}")
        for role, model in models.items()
    }
    if contest.teacher is not None and not quality_alone:
        _draw_corrected(drawn, metrics, contest.student, contest.teacher, protocol, space, cache)
    return drawn


def measure(material: Material, metrics: Metrics, kinds: Sequence[Kind]) -> None:
    """Add what the table of metrics knows of `kinds`, each by its own module, or name it with the reason why not."""
    for module, group in itertools.groupby(kinds, key=lambda kind: kind.measured_in):
        able = []
        for metric in (metric for kind in group for metric in material.wanted(kind)):
            if (why := material.why_not(metric)) is not None:
                metrics.skip((metric.name,), why)
            else:
                able.append(metric)
        if able:
            importlib.import_module(f"diffcompress.evaluation.{module}").add_metrics(material, able, metrics)


def _inputs(
    teacher: LoadedPipeline,
    drawn: Drawn,
    protocol: Protocol,
    clean: Tensor | None,
    conditioning: Mapping[str, Tensor] | None,
) -> tuple[Tensor, Mapping[str, Tensor]]:
    """Clean samples that predictions are compared on: those given, else the teacher's own."""
    if clean is None:
        clean = drawn.images
        conditioning = conditioning_for(teacher, range(len(clean)), protocol.sampling_seed)
    first = slice(protocol.agreement_images)
    return clean[first], {name: value[first] for name, value in (conditioning or {}).items()}


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
        drawn["corrected"] = cache.draw(probed, _aside(protocol), space, "sampling the corrected student")
        if drawn["corrected"].num_broken:
            why = "samples of the corrected student are not finite"
    if why is not None:
        metrics.skip((PROBE,), why)


def _aside(protocol: Protocol) -> Protocol:
    """Of what only stands beside the student."""
    return protocol.model_copy(update={"num_samples": protocol.aside_samples or protocol.num_samples})


def for_probe(protocol: Protocol) -> Protocol:
    """Of the teacher's samples that lines are fitted on: nothing is evaluated on them."""
    changes = {
        "seed": protocol.seed + streams.PROBE_SEED_SHIFT,
        "num_samples": min(correction.NUM_IMAGES, protocol.num_samples),
        "feature_space": None,
        "extractor": None,
        "reference": None,
    }
    return protocol.model_copy(update=changes)


def _corrected(
    student: LoadedPipeline, teacher: LoadedPipeline, protocol: Protocol, cache: SampleCache
) -> LoadedPipeline:
    """The student behind its best lines to the teacher."""
    apart = for_probe(protocol)
    clean = cache.draw(teacher, apart, None, "sampling the teacher for the probe").images
    conditioning = conditioning_for(teacher, range(len(clean)), apart.sampling_seed)
    student = in_terms_of(student, teacher.noise)
    steps, seed = protocol.sampler_steps, protocol.seed
    fitted = correction.fit(student, teacher, clean, conditioning, num_steps=steps, seed=seed, runtime=cache.runtime)
    return correction.corrected(student, fitted)
