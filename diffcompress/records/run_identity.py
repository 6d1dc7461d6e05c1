"""What tells one run from another: compared by what was meant, never by how it was typed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from diffcompress.recipe import Recipe

_MOST_TOLD = 3
# The fingerprint stands for the teacher and its scheduler, the recipe's values for its name.
_AS_TYPED = ("teacher", "fingerprint", "scheduler", "recipe_name", "version")
# The description is for people; a finished run may be exported to another format later, and followed by any tracker.
_NO_VALUES: dict[str, Any] = {"description": True, "export": True, "training": {"trackers"}}


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """What sets the run `theirs` apart from `ours` (both as in run.json), in a few words; "" where they are one run.

    Values of a recipe that an earlier version did not have are what they are by default.
    """
    told = []
    # What a teacher is asked without is part of its fingerprint, too, and is told as what it is.
    if theirs.get("fingerprint") != ours.get("fingerprint") and list(without_of(theirs)) == list(without_of(ours)):
        was, now = theirs.get("teacher"), ours.get("teacher")
        told = [f"teacher was {was!r}, now {now!r}" if was != now else f"the files of teacher {now!r} have changed"]
    before, after = leaves(_meant(theirs)), leaves(_meant(ours))
    changed = [name for name in {**after, **before} if before.get(name) != after.get(name)]
    told += [f"{name} was {before.get(name)!r}, now {after.get(name)!r}" for name in changed]
    if told and theirs.get("version") != ours.get("version"):
        told.insert(0, f"it was made by diffcompress {theirs.get('version') or 'of an earlier version'}")
    more = len(told) - _MOST_TOLD
    return "; ".join([*told[:_MOST_TOLD], f"{more} more"] if more > 0 else told)


def as_path(text: str | None) -> str | None:
    """Where a file or folder of this machine lies, however it was typed; anything else as it is."""
    if text is None or not Path(text).expanduser().exists():
        return text
    return str(Path(text).expanduser().resolve())


def without_of(asked: Mapping[str, Any]) -> Sequence[str]:
    """The parts that the run that `asked` (run.json) tells of did without."""
    recipe = asked.get("recipe")
    return recipe.get("student", {}).get("without", ()) if isinstance(recipe, dict) else ()


def _meant(identity: Mapping[str, Any]) -> dict[str, Any]:
    meant = {name: value for name, value in identity.items() if name not in _AS_TYPED}
    meant |= {name: as_path(meant[name]) for name in ("data", "prompts") if name in meant}
    if isinstance(meant.get("recipe"), dict):
        meant["recipe"] = _with_defaults(meant["recipe"])
    return meant


def _with_defaults(recipe: dict[str, Any]) -> dict[str, Any]:
    try:
        return Recipe.model_validate(recipe).model_dump(mode="json", exclude=_NO_VALUES)
    except ValidationError:  # of a version that knows more, or other values
        return {name: value for name, value in recipe.items() if _NO_VALUES.get(name) is not True}


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    """What is no dict and no list, by its path: "recipe.stages.0.num_steps"."""
    if not isinstance(value, (dict, list)):
        return {path: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    below = (leaves(inner, f"{path}.{name}" if path else str(name)) for name, inner in items)
    return {name: leaf for leaves in below for name, leaf in leaves.items()}
