"""Parts that a pipeline runs without, and a run, or a student, is to do without."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from diffcompress.errors import UsageError
from diffcompress.families import registry
from diffcompress.families.base import Family
from diffcompress.sources.model_index import DENOISERS, parts_of
from diffcompress.sources.reference import Reference

_TEXT = ("text_encoder", "tokenizer")
# Configs without weights, which other parts need.
_HELPERS = ("feature_extractor", "image_processor", "scheduler")


def leave_out(reference: Reference, family: Family, names: Iterable[str]) -> Reference:
    """`reference`, whose pipeline goes without the parts `names`, a text encoder's tokenizer with it.

    Parts that it is without already are passed over. Raises UsageError for a part that it does not have, or that it
    cannot draw without.
    """
    names = dict.fromkeys(names)
    if not names:
        return reference
    around, index = reference.surroundings, _index(reference)
    spare, parts = _spare(index, family), parts_of(index)
    advice = f"it can do without {', '.join(spare)}" if spare else "it has no part that it can do without"
    left: list[str] = []
    for name in names:
        tokenizer = name.replace("text_encoder", "tokenizer")
        encoder = name.replace("tokenizer", "text_encoder")
        if index.get(name) == [None, None] or (name != encoder and encoder in spare and encoder in names):
            continue
        if name not in parts:
            raise UsageError(f"student.without names {name}, a part that '{reference.id}' does not have", advice)
        if name not in spare:
            raise UsageError(
                f"student.without names {name}, without which a {index['_class_name']} does not draw", advice
            )
        left += [part for part in dict.fromkeys((name, tokenizer)) if part in parts]
    if not left:
        return reference
    told = f"{' and '.join(left)} of its pipeline: left out (student.without)"
    if any(part.startswith(_TEXT) for part in left):
        told += "; teacher and student are both asked without, so that no figure shows what that costs"
    if around is not None:
        rest = {part: value for part, value in around.index.items() if part not in left}
        held = {part: tensors for part, tensors in around.held.items() if part not in left}
        around = replace(around, index={**rest, **{part: [None, None] for part in left}}, held=held)
    return replace(reference, without=tuple(left), surroundings=around, notes=(*reference.notes, told))


def like_students(teacher: Reference, students: Mapping[str, Reference]) -> Reference:
    """`teacher`, asked for prompts as its `students` are: without the encoders that they were made without.

    Raises UsageError for students of which some have an encoder that others lack.
    """
    family = registry.find(teacher.class_name)
    lacking = {text: _lacking(one, family) for text, one in students.items() if one.pipeline is not None}
    for text, names in lacking.items():
        first, same = next(iter(lacking.items()))
        if names != same:
            told = ", ".join({*names} ^ {*same})
            raise UsageError(
                f"of '{first}' and '{text}' one does without {told}, so that they are not asked alike",
                "evaluate each by itself",
            )
    names = next(iter(lacking.values()), [])
    return leave_out(teacher, family, [name for name in names if name in _index(teacher)])


def _index(reference: Reference) -> Mapping[str, Any]:
    return reference.index if reference.surroundings is None else reference.surroundings.index


def _lacking(student: Reference, family: Family) -> list[str]:
    return [name for name in student.left_out if name in family.optional_encoders]


def _spare(index: Mapping[str, Any], family: Family) -> list[str]:
    """The parts that the pipeline of `index` has and draws from prompts without: encoders by its family, others by its
    class."""
    import diffusers  # seconds, which most runs spend later

    optional = getattr(getattr(diffusers, str(index.get("_class_name")), None), "_optional_components", ())
    others = [part for part in optional if not part.startswith((*_TEXT, *_HELPERS, *DENOISERS))]
    return [part for part in parts_of(index) if part in (*family.optional_encoders, *others)]
