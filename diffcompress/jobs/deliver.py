"""What comes after training: evaluation, export, proof, report and push; each step skipped when its file is there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from diffusers import ModelMixin

from diffcompress.bank.bank import Bank
from diffcompress.errors import DiffCompressError
from diffcompress.evaluation import interval
from diffcompress.evaluation.cache import SampleCache, is_shipped
from diffcompress.evaluation.doubts import doubts
from diffcompress.evaluation.features import FeatureSpace, choose_space, protocol_for
from diffcompress.evaluation.proportion import Calls, in_proportion
from diffcompress.evaluation.score import Contest, evaluate_pipeline
from diffcompress.export import hub
from diffcompress.export.formats import write_formats
from diffcompress.export.proof import prove
from diffcompress.export.provenance import relicense
from diffcompress.export.weights import export_pipeline, rounded
from diffcompress.jobs.run import Run
from diffcompress.jobs.students import as_student
from diffcompress.pipeline.codec import Codec
from diffcompress.pipeline.load import LoadedPipeline
from diffcompress.pipeline.predicting import predicting
from diffcompress.recipe import Recipe
from diffcompress.records import layout, shapes
from diffcompress.records.evaluation import Evaluation, Judged
from diffcompress.records.fingerprints import is_sound
from diffcompress.records.metrics import ROLES
from diffcompress.records.protocol import Protocol
from diffcompress.records.provenance import Provenance
from diffcompress.records.run_files import kept, read_json, read_record, read_tensors, write_checked, write_json
from diffcompress.report.page import write_report
from diffcompress.runtime import Progress
from diffcompress.student import costs
from diffcompress.training.state import counters

# Without a feature space no distance is estimated, and fewer samples tell the rest.
SAMPLES_WITHOUT_SPACE = 256


def conclude(run: Run, recipe: Recipe, start: ModelMixin, trained: ModelMixin, bank: Bank) -> None:
    """Evaluate and ship the student `trained`, which was `start`. All processes evaluate it, the rest is the main
    one's."""
    runtime = run.runtime
    recipe = recipe.model_copy(update={"export": run.request.recipe.export})
    if runtime.anywhere(runtime.is_main and not _is_evaluated(run)):
        with run.timed("evaluation"):
            _evaluate(run, recipe, start, trained)
        runtime.stop_together()
    if runtime.is_main:
        _ship(run, recipe, trained, bank)


def _ship(run: Run, recipe: Recipe, trained: ModelMixin, bank: Bank) -> None:
    """All that is written of an evaluated student."""
    folder, asked = run.folder, run.request.asked
    write_json(folder.warnings, _warnings(run))
    with run.timed("export"):
        kept(folder.proof, partial(read_json, kind=shapes.Proof), run.progress.warn)
        exported = folder.is_exported
        sound = exported and is_sound(folder)
        if exported and not sound:
            run.progress.warn(f"{folder.pipeline} is not what was proved any more, and is written again")
        if not sound or read_record(folder.provenance, Provenance).half_parts != recipe.export.half_parts:
            _export(run, recipe, trained, bank)
        dtype, layers = _export_dtype(run), run.plan.adapters
        write_formats(trained, _around(run), folder, recipe.export, dtype=dtype, layers=layers)
    if asked.license:
        relicense(folder, asked.license)
    write_report(folder)
    if asked.push_to_hub is not None:
        run.runtime.stop.raise_if_set()
        pushed = hub.push(folder, asked.push_to_hub, public=asked.public, progress=run.progress)
        run.progress.note(f"pushed to {pushed.url}, commit {pushed.commit}")
        write_report(folder)


def _is_evaluated(run: Run) -> bool:
    """Whether metrics and samples are there and whole; what is damaged is told and removed."""
    samples = [file for role in ROLES if (file := run.folder.samples_of(role)).exists()]
    read = partial(read_tensors, finite=False)
    whole = [kept(file, read, run.progress.warn) is not None for file in samples]
    found = kept(run.folder.metrics, partial(read_record, kind=Evaluation), run.progress.warn)
    return found is not None and all(whole)


def judged(
    teacher: LoadedPipeline, recipe: Recipe, progress: Progress, space: FeatureSpace | None = None
) -> tuple[FeatureSpace | None, Protocol]:
    """Where and how a student of `teacher` is measured; in `space`, where one is named."""
    space = choose_space(teacher, progress, space)
    return space, protocol_in(space, teacher, recipe)


def protocol_in(space: FeatureSpace | None, teacher: LoadedPipeline, recipe: Recipe) -> Protocol:
    """How a student of `teacher` is measured in `space`."""
    section = recipe.evaluation
    return protocol_for(
        space,
        teacher,
        num_samples=section.num_samples if space else min(section.num_samples, SAMPLES_WITHOUT_SPACE),
        sampler_steps=section.sampler_steps,
        guidance=section.guidance,
    )


def shipped(run: Run, trained: ModelMixin) -> LoadedPipeline:
    """The student `trained` as it ships, rounded to the dtype of its files.

    Raises DiffCompressError when it predicts NaN or infinite values.
    """
    dtype = _export_dtype(run)
    student = replace(as_student(run.teacher, run.plan, rounded(trained, dtype, run.teacher.device)), dtype=dtype)
    _check_finite(student)
    return student


def _evaluate(run: Run, recipe: Recipe, start: ModelMixin, trained: ModelMixin) -> None:
    """Write metrics.json and samples."""
    teacher, student, folder = run.teacher.apart, shipped(run, trained).apart, run.folder
    space, asked = judged(teacher, recipe, run.progress)
    protocol = _in_proportion(run, teacher, recipe, space, asked)
    contest = Contest(student, teacher, protocol, space, untrained=as_student(teacher, run.plan, start))
    cache = SampleCache(folder.cache, run.runtime, run.progress)
    if recipe.evaluation.interval is not None:
        contest = replace(contest, protocol=_precise(run, recipe.evaluation.interval, contest, cache))
    scored = evaluate_pipeline(contest, cache, samples_folder=folder.samples)
    if not run.runtime.is_main:
        return
    found = Evaluation(
        student=Judged(id=str(run.folder.pipeline), fingerprint=student.fingerprint),
        teacher=Judged(id=teacher.reference.id, fingerprint=teacher.fingerprint),
        **dict(scored),
        weight_change=_change(start, trained),
    )
    write_checked(folder.metrics, found.to_json())


def _in_proportion(
    run: Run, teacher: LoadedPipeline, recipe: Recipe, space: FeatureSpace | None, asked: Protocol
) -> Protocol:
    """`asked` with as many samples as the training is worth, which is told where they are fewer.

    Students that are made together are compared: all as asked.
    """
    if run.folder.shared is not None:
        return asked
    calls = calls_of(teacher, run.plan.config, teacher.codec, drawn=is_shipped(teacher.fingerprint, asked))
    protocol = in_proportion(asked, recipe, space, calls)
    if protocol.num_samples < asked.num_samples:
        run.progress.note(
            f"{protocol.num_samples:,} of {asked.num_samples:,} samples are drawn for the evaluation: it takes no more "
            "than a quarter of the training's computations; `diffcompress evaluate` draws as many as it is told"
        )
    return protocol


def _precise(run: Run, share: float, contest: Contest, cache: SampleCache) -> Protocol:
    """With as many samples as the interval takes, where it can be had."""
    most = contest.protocol.num_samples
    why = "students that are made together are compared" if run.folder.shared is not None else None
    if (why := why or interval.why_not(contest, most)) is not None:
        run.progress.note(f"{most:,} samples are drawn, whatever evaluation.interval is: {why}")
        return contest.protocol
    return interval.precise([contest], share, most, cache)


def calls_of(teacher: LoadedPipeline, student: Mapping[str, Any], codec: Codec | None, *, drawn: bool) -> Calls:
    """In multiply-accumulates, so that they are the same on every machine. student: its config."""
    own, whole = (costs.count(teacher.family, config).macs for config in (student, teacher.config))
    return Calls(own, whole, drawn, 0 if codec is None else codec.macs(teacher.sample_shape))


@torch.no_grad()
def _change(start: ModelMixin, trained: ModelMixin) -> float:
    """Root of the squared change of all parameters over their squares before."""
    before = [value.cpu().double() for value in start.parameters()]
    after = [value.cpu().double() for value in trained.parameters()]
    moved = sum(float((b - a).square().sum()) for b, a in zip(before, after, strict=True))
    return (moved / max(sum(float(b.square().sum()) for b in before), 1e-300)) ** 0.5


@torch.no_grad()
def _check_finite(student: LoadedPipeline) -> None:
    """A run may be too short for the guard rails of training, which count skipped steps."""
    inputs = {name: value.to(student.device) for name, value in student.example_inputs().items()}
    prediction = student.predict(inputs.pop("noisy"), inputs.pop("timestep"), inputs)
    if not torch.isfinite(prediction).all():
        raise DiffCompressError(
            "training diverged: the student predicts NaN or infinite values",
            "lower training.learning_rate in the recipe, or check the teacher",
        )


def _export(run: Run, recipe: Recipe, trained: ModelMixin, bank: Bank) -> None:
    provenance = {
        "recipe": recipe.model_dump(mode="json"),
        "seed": recipe.seed,
        "bank": bank.key,
        "method": run.request.asked.method,
    }
    if run.request.asked.license:
        provenance["license"] = run.request.asked.license
    dtype = _export_dtype(run)
    half_parts = recipe.export.half_parts
    export_pipeline(trained, _around(run), run.folder, dtype=dtype, half_parts=half_parts, provenance=provenance)
    prove(run.folder, trained, run.teacher, dtype=dtype)


def _around(run: Run) -> LoadedPipeline:
    """The teacher's pipeline as it is around the student: its scheduler says what the student predicts."""
    return predicting(run.teacher, run.plan.prediction_type)


def _export_dtype(run: Run) -> torch.dtype:
    asked = run.request.asked.dtype
    return getattr(torch, asked) if asked else run.teacher.dtype


def _warnings(run: Run) -> list[str]:
    found = []
    for folder in run.folder.stages()[-1:]:  # counters run on over the stages
        counted = counters(folder / layout.FINAL)
        if counted["skipped"] or counted["rollbacks"]:
            found.append(
                f"training: {counted['skipped']} steps skipped for non-finite values, "
                f"{counted['rollbacks']} rollbacks (learning rate x {counted['learning_rate_scale']:g})"
            )
    found += [*run.teacher.conditions.warnings, *read_json(run.folder.bank_record, kind=dict).get("warnings", [])]
    return found + doubts(read_record(run.folder.metrics, Evaluation).metrics)
