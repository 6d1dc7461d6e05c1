"""A candidate of a search is built and run, both without weights, before anyone relies on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from diffcompress.errors import DoesNotFitError
from diffcompress.families.base import Config
from diffcompress.families.shapes import shapes
from diffcompress.student import adapters, costs
from diffcompress.student.search import TOLERANCE, Candidate
from diffcompress.student.student_plan import StudentPlan
from diffcompress.student.target import Target


def proven(target: Target, candidate: Candidate, tolerance: float = TOLERANCE) -> StudentPlan | None:
    """The student of `candidate`; None if its size is off. Raises DoesNotFitError where it does not run."""
    family, config = target.family, target.config
    student = family.shrunk_config(config, candidate.choice)
    params = shapes(family.class_name, student).num_parameters
    if abs(params / target.params - 1) > tolerance:
        return None
    try:
        costs.check(family, student, config)
    except (RuntimeError, ValueError) as error:
        raise DoesNotFitError(
            f"a student of ratio {target.ratio:.4g} with {candidate.choice} does not run on the teacher's input: "
            f"{error}",
            "ask for another ratio, or more student.channels_per_group",
        ) from error
    rules = family.tensor_rules(config, student)
    plain = {key: _plain(value) for key, value in config.items() if not key.startswith("_")}
    student = {key: _plain(value) for key, value in student.items()}
    found = StudentPlan(
        family=family.class_name,
        teacher_config=plain,
        config=student,
        params=params,
        teacher_params=target.teacher_params,
        requested_ratio=target.ratio,
        choice=candidate.choice,
        notes=(*_notes(config, student, family.reasons(config, student)), *rules.notes),
    )
    if not family.text_conditioning(config):  # which have no adapters
        return found
    return replace(found, notes=(*found.notes, adapters.told(rules)), adapters=adapters.fitting(rules))


def _notes(config: Config, student: Config, reasons: Mapping[str, str]) -> list[str]:
    """What changed, with the reason where there is one to tell."""
    old = {key: _plain(config.get(key)) for key in student}
    changed = [key for key in student if not key.startswith("_") and old[key] != student[key]]
    return [
        f"{key}: {'default' if old[key] is None else old[key]} -> {student[key]}"
        + (f" ({reasons[key]})" if key in reasons else "")
        for key in changed
    ]


def _plain(value: Any) -> Any:
    """A config's value as JSON holds it."""
    return list(value) if isinstance(value, tuple) else value
