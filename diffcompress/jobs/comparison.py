"""Several students side by side: their names, results from before, one table and one size-quality frontier."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from diffcompress.errors import DamagedError, UsageError
from diffcompress.evaluation import frontier
from diffcompress.evaluation import gates as gating
from diffcompress.jobs.testbed import Testbed
from diffcompress.pipeline.load import LoadedPipeline
from diffcompress.records import layout
from diffcompress.records.evaluation import Evaluation
from diffcompress.records.protocol import check_same
from diffcompress.records.request import EvaluateOptions
from diffcompress.records.run_files import read_json, write_json, write_text
from diffcompress.report.frontier import draw
from diffcompress.runtime import Progress

# Nothing is sampled for results from before.
_OF_SAMPLING = ("data", "num_samples", "interval", "sampler_steps", "prompts")


def names(students: Sequence[str]) -> dict[str, str]:
    """A name for each student, told apart by parent folders where the last part of the path is the same."""
    if len(set(students)) < len(students):
        twice = next(text for text in students if students.count(text) > 1)
        raise UsageError(f"'{twice}' is given more than once", "name each student once")
    parts = {}
    for text in students:
        path = Path(text).expanduser()
        whole = (path.resolve() if path.exists() else path).parts
        while len(whole) > 1 and whole[-1] in layout.GENERIC:
            whole = whole[:-1]
        parts[text] = whole
    length = 1
    while len({p[-length:] for p in parts.values()}) < len(parts) and length < max(map(len, parts.values())):
        length += 1
    found = {text: re.sub(r"[/\\:]+", "-", "-".join(p[-length:])).strip("-") for text, p in parts.items()}
    if len(set(found.values())) < len(found):
        found = {text: f"{name}-{number}" for number, (text, name) in enumerate(found.items(), 1)}
    return found


def earlier_results(students: Sequence[str]) -> dict[str, Evaluation]:
    """Of those that are files; raises UsageError for a file that is no result."""
    return {text: _earlier(Path(text)) for text in students if Path(text).is_file()}


def check_unused(asked: EvaluateOptions) -> None:
    """Raise UsageError for options of sampling where every student is a result that was sampled before."""
    for name in _OF_SAMPLING:
        if getattr(asked, name) is not None:
            raise UsageError(
                f"--{name.replace('_', '-')} says nothing about results that were measured before",
                "name the pipelines instead of their evaluation.json to measure them again",
            )


def _earlier(path: Path) -> Evaluation:
    """A result may have been written by hand, or cut."""
    try:
        value = read_json(path)
    except (OSError, DamagedError) as error:
        advice = "name a pipeline folder or an evaluation.json"
        raise UsageError(f"{path} is neither a pipeline folder nor a readable result", advice) from error
    try:
        found = Evaluation.model_validate(value)
    except ValidationError as error:
        raise _no_result(path) from error
    if "params" not in found.metrics:
        raise _no_result(path)
    return found


def _no_result(path: Path) -> UsageError:
    return UsageError(f"{path} is no result of an evaluation", "name an evaluation.json or a pipeline folder")


def check_shapes(students: Mapping[str, LoadedPipeline]) -> None:
    (first, like), *others = students.items()
    for text, model in others:
        if model.sample_shape != like.sample_shape:
            ours, theirs = list(model.sample_shape), list(like.sample_shape)
            raise UsageError(
                f"'{text}' makes samples of shape {ours}, '{first}' of shape {theirs}",
                "compare models of one data format",
            )


def check_like(earlier: Mapping[str, Evaluation], testbed: Testbed) -> None:
    """Raise UsageError unless results from before were measured in the same way, against the same teacher."""
    for text, result in earlier.items():
        check_same(result.protocol, testbed.protocol)
        ours = testbed.teacher.fingerprint if testbed.teacher is not None else None
        if (result.teacher.fingerprint if result.teacher is not None else None) != ours:
            raise _other_teacher(text)


def check_all(students: Sequence[str], results: Sequence[Evaluation]) -> None:
    """Raise UsageError for results that were measured differently."""
    first = results[0]
    for text, result in zip(students[1:], results[1:], strict=True):
        check_same(first.protocol, result.protocol)
        one, other = (found.teacher and found.teacher.fingerprint for found in (first, result))
        if one != other:
            raise _other_teacher(text)


def _other_teacher(text: str) -> UsageError:
    return UsageError(
        f"'{text}' was evaluated against another teacher than the others and cannot be compared with them",
        "evaluate all students against one teacher",
    )


def again(result: Evaluation, name: str, gates: Sequence[gating.Gate], progress: Progress) -> Evaluation:
    """A result from before, under the name and the gates of now; what made it doubtful is told again."""
    for warning in result.warnings:
        progress.warn(f"{name}: {warning}")
    student = result.student.model_copy(update={"name": name})
    verdicts = gating.judge(gates, result.metrics, result.protocol.feature_space)
    return result.model_copy(update={"student": student, "gates": verdicts})


def concluded(results: Sequence[Evaluation], folder: Path, progress: Progress) -> list[Evaluation]:
    """`results` with those marked that none beats, as comparison.json holds them, the frontier drawn beside."""
    told = list(results)
    metric = frontier.quality(told)
    if metric is None:
        progress.warn("no quality was measured for all students, so there is no frontier to draw: give --teacher")
    else:
        best = frontier.unbeaten(told, metric)
        told = [one.model_copy(update={"unbeaten": on}) for one, on in zip(told, best, strict=True)]
        write_text(folder / layout.FRONTIER, draw(told, metric))
    write_json(folder / layout.COMPARISON, [one.to_json() for one in told])
    return told
