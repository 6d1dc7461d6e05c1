"""A job as Python calls it: the fields of its options as arguments, its records as plain dicts."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Any, TypeVar

from diffcompress.records.record import plain
from diffcompress.records.request import hints_of, options_of
from diffcompress.runtime import Progress

Options = TypeVar("Options")


def as_function(
    name: str, options: type[Options], run: Callable[[Options, Progress], Any], returns: str = "dict[str, Any]"
) -> Callable[..., Any]:
    """`run(options, progress)` as a function `name` of the options' fields; its docstring is that of `run`, with a line
    for each option. returns: as its signature says."""
    signature = inspect.Signature(_parameters(options), return_annotation=returns)

    def call(*args: Any, progress: Progress | None = None, **keywords: Any) -> Any:
        given = signature.bind(*args, progress=progress, **keywords).arguments  # its TypeErrors name the function's own
        del given["progress"]
        return plain(run(options(**given), progress or Progress()))

    call.__name__ = call.__qualname__ = name
    call.__module__, call.__doc__ = run.__module__, _documented(run, options)
    call.__signature__ = signature  # type: ignore[attr-defined]
    return call


def _parameters(options: type) -> list[inspect.Parameter]:
    hints, found = hints_of(options), []
    for field in fields(options):
        kind = inspect.Parameter.KEYWORD_ONLY if field.kw_only else inspect.Parameter.POSITIONAL_OR_KEYWORD
        default = inspect.Parameter.empty if field.default is MISSING else field.default
        found.append(inspect.Parameter(field.name, kind, default=default, annotation=hints[field.name]))
    progress = inspect.Parameter("progress", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Progress | None)
    return [*found, progress]


def _documented(run: Callable[..., Any], options: type) -> str:
    lines = [f"    {name}: {told.python or told.help}" for name, told in options_of(options).items()]
    return "\n".join([inspect.getdoc(run) or "", "", "Args:", *lines])
