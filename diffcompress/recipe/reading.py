"""YAML to a recipe: built-in names and files, bases, `--set`, and all mistakes told at once."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from diffcompress import inputs
from diffcompress.errors import UsageError
from diffcompress.recipe.methods import METHODS, OURS, as_baseline
from diffcompress.recipe.overrides import override
from diffcompress.recipe.sections import Recipe

_LARGEST = 1 << 20  # of a recipe, in bytes
_MOST_TOLD = 20  # mistakes


def builtin_folder() -> Path:
    """Where the built-in recipes lie: beside the package in a checkout, inside it in an installed wheel."""
    inside = Path(str(resources.files("diffcompress"))) / "recipes"
    return inside if inside.is_dir() else Path(str(resources.files("diffcompress"))).parent / "recipes"


def builtin_names() -> list[str]:
    return sorted(path.stem for path in builtin_folder().glob("*.yaml"))


def default_for(teacher: str, family: str = "default") -> str:
    """The built-in recipe for a teacher, by its id as the user wrote it, and by the name its family gives."""
    name, _, which = teacher.partition(":")
    if name == "demo":
        return f"demo-{which}" if f"demo-{which}" in builtin_names() else "demo"
    return family if family in builtin_names() else "default"


def doubts(name: str, class_name: str, own: str) -> tuple[str, ...]:
    """What to tell who takes the recipe `name` for a denoiser of that class, whose family starts from the recipe `own`.

    That of pixel U-Nets alone starts from the default.
    """
    if name != "published" or own == "default":
        return ()
    return (
        f"the settings of recipe '{name}' were published for pixel U-Nets, not for a {class_name}; "
        "without --recipe its own are taken",
    )


def load(
    name_or_file: str = "default", overrides: tuple[str, ...] = (), method: str = OURS, seed: int | None = None
) -> Recipe:
    """The recipe `name_or_file` with `--set` overrides, a baseline's losses in place of ours, and `seed` in place of
    its own.

    Raises UsageError for an unknown recipe or method, unreadable YAML, a `seed` that an override contradicts, and for
    all bad keys and values at once.
    """
    if method not in METHODS:
        raise UsageError(f"unknown method '{method}'", f"choose one of {', '.join(METHODS)}{nearest(method, METHODS)}")
    data = _with_base(name_or_file, ())
    if method != OURS:
        data = as_baseline(_validated(data, name_or_file), method).model_dump(mode="json")
    problems = []
    for text in overrides:
        try:
            override(data, text)
        except ValueError as error:
            problems.append(f"--set {text}: {error}")
    recipe = _validated(data, name_or_file, problems)
    if seed is None or seed == recipe.seed:
        return recipe
    if any(text.partition("=")[0] == "seed" for text in overrides):
        raise UsageError(f"--seed {seed} and --set seed={recipe.seed} contradict each other", "give one of them")
    return _validated(data | {"seed": seed}, name_or_file)


def parse(text: str, source: str) -> Recipe:
    """A full recipe from YAML text, as `recipe.yaml` of a run folder holds it."""
    return _validated(_mapping(text, source), source)


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint that ends a sentence: the one of `known` that `word` may be meant for, if any comes close."""
    match = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean '{match[0]}'?" if match else ""


def _with_base(name_or_file: str, seen: tuple[str, ...]) -> dict[str, Any]:
    if name_or_file in seen:
        raise UsageError(
            f"recipe '{name_or_file}' is its own base ({' > '.join((*seen, name_or_file))})", "break the circle"
        )
    data = _mapping(_read(name_or_file), name_or_file)
    base = data.pop("base", None)
    if base is None:
        return data
    if not isinstance(base, str):
        raise UsageError(f"recipe '{name_or_file}' has the base {base!r}, which is no name", "name a recipe or a file")
    return _merged(_with_base(base, (*seen, name_or_file)), data)


def _read(name_or_file: str) -> str:
    builtin = builtin_folder() / f"{name_or_file}.yaml"
    path = builtin if builtin.is_file() else Path(name_or_file)
    try:
        return inputs.read_text(path, largest=_LARGEST)
    except (OSError, ValueError) as error:  # ValueError: no UTF-8, or a name that no file has
        names = builtin_names()
        reason = error.strerror if isinstance(error, OSError) else "no UTF-8"
        raise UsageError(
            f"no recipe '{name_or_file}': neither a built-in name nor a readable file ({reason})",
            f"built-in recipes: {', '.join(names)}{nearest(name_or_file, names)}",
        ) from error


def _mapping(text: str, source: str) -> dict[str, Any]:
    try:
        data = inputs.parse_yaml(text)
    except ValueError as error:
        raise UsageError(f"recipe '{source}' is not valid YAML: {error}", "mend the file") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise UsageError(
            f"recipe '{source}' holds a {type(data).__name__}, not sections", "see diffcompress recipes show default"
        )
    return data


def _merged(base: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in data.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def _validated(data: dict[str, Any], source: str, problems: Sequence[str] = ()) -> Recipe:
    recipe = None
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        found = [_problem(item) for item in error.errors() if item["type"] != "too_short" or item["input"] == []]
        problems = [*problems, *found]
    if recipe is None or problems:
        told = [_cut(text) for text in problems[:_MOST_TOLD]]
        more = [f"{len(problems) - len(told)} more"] if len(problems) > len(told) else []
        raise UsageError(
            f"recipe '{source}' has {len(problems)} bad value(s): " + "; ".join([*told, *more]),
            "see diffcompress recipes show default",
        )
    return recipe


def _cut(text: str) -> str:
    """Keys and values may be endless, what is wrong with them stands at the end."""
    text = text.replace("\n", " ")
    return text if len(text) <= 160 else f"{text[:100]}...{text[-50:]}"


def _problem(item: Any) -> str:
    path = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        return f"{path}: unknown key"
    got = "" if isinstance(item["input"], (dict, list)) else f" (got {item['input']!r})"
    return f"{path}: {item['msg'].removeprefix('Value error, ')}{got}"
