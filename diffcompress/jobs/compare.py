"""`evaluate A B C`: several students under one protocol, one table, one size-quality frontier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffcompress import runtime as runtimes
from diffcompress.errors import DamagedError, UsageError
from diffcompress.evaluation import frontier
from diffcompress.evaluation import gates as gating
from diffcompress.evaluation.features import find_space
from diffcompress.images.hub_images import pinned
from diffcompress.jobs.evaluate import check_junit, checked, score, write_junit
from diffcompress.jobs.setting import Asked, Setting, fetched, prepare
from diffcompress.pipeline.load import LoadedPipeline
from diffcompress.records.metrics import metric_names
from diffcompress.records.protocol import check_same
from diffcompress.records.run_folder import read_json, write_json
from diffcompress.runtime import Progress
from diffcompress.sources.resolve import resolve

FOLDER, RESULTS, FRONTIER = "comparison", "comparison.json", "frontier.svg"
_FIELDS = {"student", "teacher", "protocol", "metrics"}
_OF_A_METRIC = {"value", "low", "high", "unit", "better", "teacher"}


def compare(
    students: Sequence[str],
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
    scheduler: str | None = None,
    prompts: str | None = None,
) -> list[dict[str, Any]]:
    """One result of `evaluate` for each student, in order; also in `output`/comparison.json, with frontier.svg beside.

    A student is a pipeline or the evaluation.json of an earlier evaluation, whose protocol and teacher must be the same
    as the others'. All share one cache, so the teacher is sampled once. Raises UsageError for unusable input and for
    results that were measured differently, before anything is sampled.
    """
    progress = progress or Progress()
    checked(num_samples, sampler_steps, seed)
    space = find_space(None, feature_weights) if feature_weights is not None else None
    parsed = gating.parse(gates, metric_names(space.name if space else None), ("teacher",) if teacher else ())
    names, data = _names(students), pinned(data)
    earlier = {text: _earlier(Path(text)) for text in students if Path(text).is_file()}
    references = {text: resolve(text, scheduler) for text in students if text not in earlier}
    if not references:
        _check_unused(data=data, num_samples=num_samples, sampler_steps=sampler_steps, prompts=prompts)
    folder = Path(output) if output is not None else Path(FOLDER)
    runtime = runtimes.start(device)
    if not runtime.is_main:  # one process does it all
        runtime.wait()
        return read_json(folder / RESULTS, kind=list)
    check_junit(junit)
    results = dict(earlier)
    if references:
        loaded = {text: fetched(reference, runtime, progress) for text, reference in references.items()}
        first = next(iter(loaded.values()))
        loaded_teacher = fetched(resolve(teacher, scheduler), runtime, progress) if teacher is not None else None
        asked = Asked(num_samples, sampler_steps, seed, data, prompts)
        setting = prepare(runtime, first, loaded_teacher, space, asked, folder / "cache", progress)
        for text, result in earlier.items():
            _check_like(text, result, setting)
        _check_shapes(loaded)
        results |= _scored(setting, loaded, folder, names, parsed)
    ordered = [results[text] for text in students]
    _check_all(students, ordered)
    for text in earlier:
        told = results[text]
        told["student"]["name"] = names[text]
        for warning in told["warnings"]:
            progress.warn(f"{names[text]}: {warning}")
        told["gates"] = gating.judge(parsed, told["metrics"], told["protocol"]["feature_space"])
    _draw(folder / FRONTIER, ordered, progress)
    write_json(folder / RESULTS, ordered)
    if junit is not None:
        write_junit(Path(junit), {names[text]: results[text]["gates"] for text in students})
    runtime.wait()
    return ordered


def _check_unused(**options: object) -> None:
    """Raise UsageError for options of sampling where every student is a result that was sampled before."""
    for name, value in options.items():
        if value is not None:
            raise UsageError(
                f"--{name.replace('_', '-')} says nothing about results that were measured before",
                "name the pipelines instead of their evaluation.json to measure them again",
            )


def _names(students: Sequence[str]) -> dict[str, str]:
    """A name for each student, told apart by parent folders where the last part of the path is the same."""
    if len(set(students)) < len(students):
        twice = next(text for text in students if students.count(text) > 1)
        raise UsageError(f"'{twice}' is given more than once", "name each student once")
    parts = {}
    for text in students:
        path = Path(text).expanduser()
        whole = (path.resolve() if path.exists() else path).parts
        generic = ("pipeline", "evaluation.json", "metrics.json", "evaluation", "unet", "transformer")
        while len(whole) > 1 and whole[-1] in generic:
            whole = whole[:-1]
        parts[text] = whole
    length = 1
    while len({p[-length:] for p in parts.values()}) < len(parts) and length < max(map(len, parts.values())):
        length += 1
    names = {text: "-".join(p[-length:]).replace("/", "").replace(":", "-") for text, p in parts.items()}
    if len(set(names.values())) < len(names):
        names = {text: f"{name}-{number}" for number, (text, name) in enumerate(names.items(), 1)}
    return names


def _earlier(path: Path) -> dict[str, Any]:
    try:
        value = read_json(path)
    except (OSError, DamagedError) as error:
        advice = "name a pipeline folder or an evaluation.json"
        raise UsageError(f"{path} is neither a pipeline folder nor a readable result", advice) from error
    if not _is_result(value):
        raise UsageError(f"{path} is no result of an evaluation", "name an evaluation.json or a pipeline folder")
    return {"probe": None, "warnings": [], **value}


def _is_result(value: Mapping[str, Any]) -> bool:
    """Whether `value` has the shape of a result; it may have been written by hand, or cut."""
    if not set(value) >= _FIELDS or not all(isinstance(value[one] or {}, dict) for one in _FIELDS):
        return False
    if not value["student"] or not value["protocol"] or "feature_space" not in value["protocol"]:
        return False
    metrics = dict(value["metrics"] or {})
    missing = metrics.pop("not_computed", [])
    lists = isinstance(missing, list) and isinstance(value.get("warnings", []), list)
    measured = all(isinstance(one, dict) and set(one) >= _OF_A_METRIC for one in metrics.values())
    return lists and measured and "params" in metrics


def _scored(
    setting: Setting,
    students: Mapping[str, LoadedPipeline],
    folder: Path,
    names: Mapping[str, str],
    gates: Sequence[gating.Gate],
) -> dict[str, dict[str, Any]]:
    stop = setting.runtime.stop
    stop.install()
    try:
        return {
            text: score(setting, model, folder / names[text], gates, name=names[text])
            for text, model in students.items()
        }
    finally:
        stop.restore()


def _check_shapes(students: Mapping[str, LoadedPipeline]) -> None:
    (first, like), *others = students.items()
    for text, model in others:
        if model.sample_shape != like.sample_shape:
            ours, theirs = list(model.sample_shape), list(like.sample_shape)
            raise UsageError(
                f"'{text}' makes samples of shape {ours}, '{first}' of shape {theirs}",
                "compare models of one data format",
            )


def _check_like(text: str, result: dict[str, Any], setting: Setting) -> None:
    check_same(result["protocol"], setting.protocol.to_json())
    theirs = (result["teacher"] or {}).get("fingerprint")
    if theirs != (setting.teacher.fingerprint if setting.teacher is not None else None):
        raise _other_teacher(text)


def _check_all(students: Sequence[str], results: Sequence[dict[str, Any]]) -> None:
    first = results[0]
    for text, result in zip(students[1:], results[1:], strict=True):
        check_same(first["protocol"], result["protocol"])
        if (first["teacher"] or {}).get("fingerprint") != (result["teacher"] or {}).get("fingerprint"):
            raise _other_teacher(text)


def _other_teacher(text: str) -> UsageError:
    return UsageError(
        f"'{text}' was evaluated against another teacher than the others and cannot be compared with them",
        "evaluate all students against one teacher",
    )


def _draw(path: Path, results: Sequence[dict[str, Any]], progress: Progress) -> None:
    metric = frontier.quality(results)
    if metric is None:
        progress.warn("no quality was measured for all students, so there is no frontier to draw: give --teacher")
        return
    for result, best in zip(results, frontier.unbeaten(results, metric), strict=True):
        result["unbeaten"] = best
    frontier.draw(path, results, metric)
