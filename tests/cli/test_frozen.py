"""The command line and the Python interface are promises: what they take is frozen in interface.txt."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import typer

import diffcompress
from diffcompress.cli.app import app
from diffcompress.records.request import PlanOptions, ShrinkOptions, hints_of

FROZEN = Path(__file__).with_name("interface.txt")


def of_command(command: Any, words: str) -> Iterator[str]:
    """One line for each argument and option: how it is spelled, of which type, what it is by default."""
    annotated = inspect.signature(command.callback).parameters
    for one in command.params:
        if one.name not in annotated:  # --help
            continue
        kind, told = get_args(annotated[one.name].annotation)
        default = "required" if one.required else f"default {annotated[one.name].default!r}"
        least = "" if told.min is None else f", at least {told.min}"
        spelled = "/".join([*one.opts, *one.secondary_opts])
        yield f"{words} {spelled}: {inspect.formatannotation(kind)}, {default}{least}"


def of_commands(group: Any, words: str) -> Iterator[str]:
    for name, command in group.commands.items():
        inner = of_commands if hasattr(command, "commands") else of_command
        yield from inner(command, f"{words} {name}")


def of_python() -> Iterator[str]:
    """One line for each parameter, keywords sorted: their order is nobody's business."""
    for name in diffcompress.__all__:
        parameters = inspect.signature(getattr(diffcompress, name)).parameters.values()
        for one in sorted(parameters, key=lambda one: (one.kind, one.name if one.kind is one.KEYWORD_ONLY else "")):
            default = "required" if one.default is one.empty else f"default {one.default!r}"
            yield f"diffcompress.{name}({one.name}), {one.kind.description}, {default}"


def test_what_commands_and_functions_take_stays() -> None:
    """REWRITE=1 in the environment writes the file again, for whoever adds an option and means it."""
    found = "".join(f"{line}\n" for line in (*of_commands(typer.main.get_command(app), "diffcompress"), *of_python()))
    if os.environ.get("REWRITE"):
        FROZEN.write_text(found, encoding="utf-8")
    assert found == FROZEN.read_text(encoding="utf-8"), "the interface has changed: if it may, run this with REWRITE=1"


def test_every_type_of_a_record_of_options_is_one() -> None:
    """Python 3.10 refuses KW_ONLY there, which later ones let through."""
    for record in (PlanOptions, ShrinkOptions):
        assert isinstance(hints_of(record)["_"], type)
