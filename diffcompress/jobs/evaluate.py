"""`evaluate`: score a student, or any pipeline, against its teacher and, if given, real images; judge the gates."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from diffcompress import runtime as runtimes
from diffcompress.errors import DamagedError, UsageError
from diffcompress.evaluation import gates as gating
from diffcompress.evaluation.features import find_space
from diffcompress.evaluation.score import evaluate_pipeline
from diffcompress.images.hub_images import pinned
from diffcompress.jobs.setting import Asked, Setting, fetched, prepare, writable
from diffcompress.pipeline.load import LoadedPipeline, state_fingerprint
from diffcompress.records.fingerprints import PROVENANCE, differs_from_provenance, is_sound
from diffcompress.records.metrics import metric_names
from diffcompress.records.run_folder import EVALUATION, RunFolder, read_json, write_json
from diffcompress.runtime import Progress
from diffcompress.sources.licence import is_demo
from diffcompress.sources.reference import Reference
from diffcompress.sources.resolve import resolve
from diffcompress.sources.state import StoredState
from diffcompress.sources.weights import TeacherState, check_state


def evaluate(
    student: str | Path,
    *,
    teacher: str | Path | None = None,
    data: str | Path | None = None,
    num_samples: int | None = None,
    sampler_steps: int | None = None,
    gates: Sequence[str] = (),
    output: str | Path | None = None,
    feature_weights: str | Path | None = None,
    junit: str | Path | None = None,
    seed: int = 0,
    device: str | None = None,
    progress: Progress | None = None,
    scheduler: str | None = None,
    prompts: str | None = None,
) -> dict[str, Any]:
    """`{"student", "teacher", "protocol", "metrics", "probe", "warnings", "gates"}`, also in `output`/evaluation.json.

    scheduler: for denoiser folders that have none beside them; prompts: a file with one a line for text-conditional
    models, else the built-in ones. Gates may compare with the untrained student where `student` is a run's own
    pipeline. Whether a gate passed is in its "passed"; a failed gate is no exception. Drawn samples stay in
    `output`/cache, so the same call after a stop goes on. Raises UsageError for unusable input, before anything is
    sampled.
    """
    progress = progress or Progress()
    checked(num_samples, sampler_steps, seed)
    space = find_space(None, feature_weights) if feature_weights is not None else None
    student = str(student)
    teacher, data = (None if given is None else str(given) for given in (teacher, data))
    start = _start_of(student)
    models = [name for name, given in (("teacher", teacher), ("untrained", start)) if given is not None]
    parsed = gating.parse(gates, metric_names(space.name if space else None), models)
    data = pinned(data)
    reference = resolve(student, scheduler)
    folder = _output_folder(output, reference)
    runtime = runtimes.start(device)
    if not runtime.is_main:  # one process does it all
        runtime.wait()
        return read_json(folder / EVALUATION, kind=dict)
    loaded = fetched(reference, runtime, progress)
    loaded_teacher = fetched(resolve(teacher, scheduler), runtime, progress) if teacher is not None else None
    wanted = any(gate.model == "untrained" for gate in parsed)
    untrained = _as_it_began(loaded, start) if start is not None and wanted else None
    check_junit(junit)
    asked = Asked(num_samples, sampler_steps, seed, data, prompts)
    setting = prepare(runtime, loaded, loaded_teacher, space, asked, folder / "cache", progress)
    runtime.stop.install()
    try:
        result = score(setting, loaded, folder, parsed, untrained=untrained)
    finally:
        runtime.stop.restore()
    if junit is not None:
        write_junit(Path(junit), {reference.name: result["gates"]})
    runtime.wait()
    return result


def score(
    setting: Setting,
    student: LoadedPipeline,
    folder: Path,
    gates: Sequence[gating.Gate],
    *,
    untrained: LoadedPipeline | None = None,
    name: str | None = None,
) -> dict[str, Any]:
    """Evaluate one student into `folder` and tell its warnings; raises UsageError when `folder` cannot be written."""
    for place in (folder, setting.cache):
        writable(place)
    space, (clean, conditioning) = setting.space, setting.clean or (None, None)
    scored = evaluate_pipeline(
        setting.alike(student),
        setting.teacher,
        setting.protocol,
        space=space,
        cache_folder=setting.cache,
        stop=setting.runtime.stop,
        untrained=untrained and setting.alike(untrained),
        clean=clean,
        conditioning=conditioning,
        samples_folder=folder / "samples",
        progress=setting.progress,
    )
    scored["warnings"] += _changed(student.reference)
    for text in scored["warnings"]:
        setting.progress.warn(text if name is None else f"{name}: {text}")
    verdicts = gating.judge(gates, scored["metrics"], space.name if space is not None else None)
    about = {"student": _about(student, name), "teacher": setting.teacher and _about(setting.teacher)}
    result = {**about, **scored, "gates": verdicts}
    write_json(folder / EVALUATION, result)
    return result


def checked(num_samples: int | None, sampler_steps: int | None, seed: int) -> None:
    """Raise UsageError for a number of the protocol that is not positive."""
    for name, value in (("num_samples", num_samples), ("sampler_steps", sampler_steps)):
        if value is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')} {value} is not a positive number", "leave it out or use more")
    if seed < 0:
        raise UsageError(f"--seed {seed} is negative", "use 0 or a positive number")


def check_junit(junit: str | Path | None) -> None:
    """Raise UsageError for a place that could not take the gates' results in the end."""
    if junit is None:
        return
    if Path(junit).is_dir():
        raise UsageError(f"--junit {junit} is a folder", "name the XML file to write")
    writable(Path(junit).absolute().parent, "--junit")


def write_junit(path: Path, results: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Gate results by student; raises UsageError where `path` cannot be written."""
    try:
        gating.write_junit(path, results)
    except OSError as error:
        raise UsageError(
            f"cannot write the gates' results to {path}: {error.strerror}", "choose another --junit"
        ) from error


def _output_folder(output: str | Path | None, student: Reference) -> Path:
    if output is not None:
        return Path(output)
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
        return [f"the weights in {place} are not those that its {PROVENANCE} tells of"]
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


def _about(model: LoadedPipeline, name: str | None = None) -> dict[str, Any]:
    params = sum(p.numel() for p in model.denoiser.parameters())
    return {
        "id": model.reference.id,
        "name": name or model.reference.name,
        "class": model.family.class_name,
        "params": params,
        "fingerprint": model.fingerprint,
    }
