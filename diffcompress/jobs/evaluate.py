"""`evaluate`: score a student, or several against each other, against their teacher and, if given, real images."""

from __future__ import annotations

import copy
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from diffcompress import runtime as runtimes
from diffcompress.errors import DamagedError, UsageError
from diffcompress.evaluation import gates as gating
from diffcompress.evaluation.features import FeatureSpace, find_space
from diffcompress.evaluation.score import evaluate_pipeline
from diffcompress.images.hub_images import pinned
from diffcompress.jobs import comparison
from diffcompress.jobs.signature import as_function
from diffcompress.jobs.testbed import Testbed, fetched, prepare
from diffcompress.pipeline.left_out import like_students
from diffcompress.pipeline.load import LoadedPipeline, state_fingerprint
from diffcompress.records import layout
from diffcompress.records.evaluation import Evaluation, Judged, Verdict
from diffcompress.records.fingerprints import differs_from_provenance, is_sound
from diffcompress.records.metrics import every
from diffcompress.records.request import EvaluateOptions
from diffcompress.records.run_files import read_json, read_record, writable, write_json
from diffcompress.records.run_folder import RunFolder
from diffcompress.runtime import Progress, Runtime
from diffcompress.sources.licence import is_demo
from diffcompress.sources.reference import Reference
from diffcompress.sources.resolve import resolve
from diffcompress.sources.state import StoredState
from diffcompress.sources.weights import TeacherState, check_state


def run(asked: EvaluateOptions, progress: Progress) -> Evaluation | list[Evaluation]:
    """Student, teacher, protocol, metrics, probe, warnings and gates of a student; a list for several.

    Also in `output`/evaluation.json; of several in `output`/comparison.json, with frontier.svg beside. One of several
    may be the evaluation.json of an earlier evaluation, of the same protocol and teacher as the others'. Gates may
    compare with the untrained student where `student` is one run's own pipeline. Whether a gate passed is in its
    "passed"; a failed gate is no exception. Drawn samples stay in `output`/cache, which all students share: the teacher
    is sampled once, and the same call after a stop goes on. Raises UsageError for unusable input, and for results that
    were measured differently, before anything is sampled.
    """
    work = _resolved(asked)
    runtime = runtimes.start(asked.device)
    junit = None if asked.junit is None else _checked_junit(asked.junit)
    measured = _measured(work, runtime, progress) if work.references else {}
    if not runtime.is_main:
        runtime.wait()
        if work.alone:
            return next(iter(measured.values()))
        return [Evaluation.model_validate(one) for one in read_json(work.folder / layout.COMPARISON, kind=list)]
    results = [measured.get(text) or work.earlier[text] for text in work.names]
    if not work.alone:
        comparison.check_all(list(work.names), results)
        for place, (text, name) in enumerate(work.names.items()):
            if text in work.earlier:
                results[place] = comparison.again(results[place], name, work.gates, progress)
        results = comparison.concluded(results, work.folder, progress)
    if junit is not None:
        _write_junit(junit, {one.student.name: one.gates for one in results})
    runtime.wait()
    return results[0] if work.alone else results


evaluate = as_function("evaluate", EvaluateOptions, run, "dict[str, Any] | list[dict[str, Any]]")


@dataclass(frozen=True)
class _Work:
    """What there is to do, known before anything is loaded.

    alone: one student, which is no list of one; names: of all students, in order; references: of those to measure;
    earlier: results that stand for the others; start: the weights that a run's student began with.
    """

    asked: EvaluateOptions
    alone: bool
    names: dict[str, str]
    references: dict[str, Reference]
    earlier: dict[str, Evaluation]
    start: Path | None
    space: FeatureSpace | None
    gates: list[gating.Gate]
    folder: Path


def _resolved(asked: EvaluateOptions) -> _Work:
    """Raises UsageError for students, gates and a feature extractor that cannot be used."""
    alone = isinstance(asked.student, (str, Path))
    students = [str(one) for one in ([asked.student] if isinstance(asked.student, (str, Path)) else asked.student)]
    space = None if asked.feature_weights is None else find_space(None, asked.feature_weights)
    start = _start_of(students[0]) if alone else None
    models = [name for name, given in (("teacher", asked.teacher), ("untrained", start)) if given is not None]
    gates = gating.parse(asked.gates, every(space.name if space else None), models)
    names = comparison.names(students)
    earlier = {} if alone else comparison.earlier_results(students)
    references = {text: resolve(text, asked.scheduler) for text in students if text not in earlier}
    if not references:
        comparison.check_unused(asked)
    if earlier and asked.interval is not None:
        raise UsageError(
            "--interval decides how many samples are drawn, and results from before have their own number",
            "give that number as --num-samples, or name their pipelines",
        )
    default: Path | str = layout.COMPARISON_FOLDER
    if alone:
        (reference,) = references.values()
        names, default = {students[0]: reference.name}, _beside(reference)
    asked = replace(asked, data=pinned(None if asked.data is None else str(asked.data)))
    return _Work(asked, alone, names, references, earlier, start, space, gates, Path(asked.output or default))


def _measured(work: _Work, runtime: Runtime, progress: Progress) -> dict[str, Evaluation]:
    """Results of the students that have none yet."""
    asked, folder = work.asked, work.folder
    loaded: dict[str, LoadedPipeline] = {}
    like = teacher = None
    if asked.teacher is not None:
        asked_alike = like_students(resolve(str(asked.teacher), asked.scheduler), work.references)
        if asked_alike.without:
            told = " and ".join(asked_alike.without)
            progress.note(f"teacher and student are both asked without {told}: the student was made so")
        like = teacher = fetched(asked_alike, runtime, progress)
    for text, reference in work.references.items():
        loaded[text] = like = fetched(reference, runtime, progress, like)
    first = loaded[next(iter(loaded))]
    testbed = prepare(runtime, first, teacher, work.space, asked, folder / layout.CACHE, progress)
    comparison.check_shapes(loaded)
    comparison.check_like(work.earlier, testbed)
    untrained = None
    if work.start is not None and any(gate.model == "untrained" for gate in work.gates):
        untrained = _as_it_began(first, work.start)
    runtime.stop.install()
    try:
        if asked.interval is not None:
            testbed = testbed.precise(asked.interval, asked.num_samples, list(loaded.values()))
        if work.alone:
            return {text: score(testbed, one, folder, work.gates, untrained=untrained) for text, one in loaded.items()}
        named = {text: (one, work.names[text]) for text, one in loaded.items()}
        return {text: score(testbed, one, folder / name, work.gates, name=name) for text, (one, name) in named.items()}
    finally:
        runtime.stop.restore()


def score(
    testbed: Testbed,
    student: LoadedPipeline,
    folder: Path,
    gates: Sequence[gating.Gate],
    *,
    untrained: LoadedPipeline | None = None,
    name: str | None = None,
) -> Evaluation:
    """Evaluate one student into `folder` and tell its warnings; raises UsageError when `folder` cannot be written.

    Of several processes each draws and predicts a part; all have what the main one has found.
    """
    for place in (folder, testbed.cache):
        writable(place)
    space, (clean, conditioning) = testbed.space, testbed.clean or (None, None)
    scored = evaluate_pipeline(
        testbed.contest(student, untrained),
        testbed.samples,
        clean=clean,
        conditioning=conditioning,
        samples_folder=folder / layout.SAMPLES,
    )
    scored.warnings.extend(_changed(student.reference))
    for text in scored.warnings:
        testbed.progress.warn(text if name is None else f"{name}: {text}")
    file = folder / layout.EVALUATION
    if testbed.runtime.is_main:
        result = Evaluation(
            student=_judged(student, name),
            teacher=testbed.teacher and _judged(testbed.teacher),
            **dict(scored),
            gates=gating.judge(gates, scored.metrics, space.name if space is not None else None),
        )
        write_json(file, result.to_json())
    testbed.runtime.wait()
    return result if testbed.runtime.is_main else read_record(file, Evaluation)


def _checked_junit(junit: str | Path) -> Path:
    """Where the gates' results go, behind links; raises UsageError for what could not take them in the end, and for
    what is no file, such as a device, whose place one would take."""
    place = Path(os.path.realpath(junit))
    try:
        kind = place.stat().st_mode if os.path.lexists(place) else stat.S_IFREG
    except OSError as error:
        raise UsageError(
            f"--junit {junit} cannot be written: {error.strerror}", "name the XML file to write"
        ) from error
    if not stat.S_ISREG(kind):
        what = "a folder" if stat.S_ISDIR(kind) else "no regular file"
        raise UsageError(f"--junit {junit} is {what}", "name the XML file to write")
    writable(place.parent, "--junit")
    return place


def _write_junit(path: Path, results: Mapping[str, Sequence[Verdict]]) -> None:
    """Gate results by student; raises UsageError where `path` cannot be written."""
    try:
        gating.write_junit(path, results)
    except OSError as error:
        raise UsageError(
            f"cannot write the gates' results to {path}: {error.strerror}", "choose another --junit"
        ) from error


def _beside(student: Reference) -> Path:
    """Where results go by default."""
    if is_demo(student) or student.repository is not None:
        # The installation and the Hub's cache are no places for results.
        return Path(f"{student.name}-evaluation")
    return RunFolder(Path(student.id).expanduser().resolve().parent).evaluation


def _changed(student: Reference) -> list[str]:
    """A warning of a student of ours that is not what it was made as."""
    place = (student.pipeline or student.denoiser).expanduser().resolve()
    run = RunFolder(place.parent)
    try:
        if place == run.pipeline and run.is_exported and not is_sound(run):
            return [f"{place} is not what was proved any more; the run's own command writes it again"]
    except DamagedError as error:
        return [f"{error.message}: nothing proves the pipeline beside it; the run's own command proves it again"]
    if differs_from_provenance(place):
        return [f"the weights in {place} are not those that its {layout.PROVENANCE} tells of"]
    return []


def _start_of(student: str) -> Path | None:
    """The weights that a run's student began with, if `student` is the pipeline of a run folder."""
    place = Path(student).expanduser().resolve()
    run = RunFolder(place.parent)
    return run.student_init if place == run.pipeline and run.student_init.is_file() else None


def _as_it_began(student: LoadedPipeline, weights: Path) -> LoadedPipeline:
    state, denoiser = TeacherState(StoredState([weights])), copy.deepcopy(student.denoiser)
    check_state(state, denoiser)
    denoiser.load_state_dict(state)
    return replace(student, denoiser=denoiser, fingerprint=state_fingerprint(denoiser))


def _judged(model: LoadedPipeline, name: str | None = None) -> Judged:
    return Judged(
        id=model.reference.id,
        name=name or model.reference.name,
        class_=model.family.class_name,
        params=sum(p.numel() for p in model.denoiser.parameters()),
        fingerprint=model.fingerprint,
    )
