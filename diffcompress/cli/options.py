"""From the records of options to the options of the command line, and from their texts to values.

Every error names the option, the text and an example. Loads no torch.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Annotated, Any

import typer

from diffcompress.errors import UsageError
from diffcompress.records.request import Option, Reader, options_of
from diffcompress.records.units import BYTES, COUNTS, SECONDS

Command = Callable[..., None]
# What Typer itself makes of a text; the rest is read from text by `read`.
_KINDS: dict[Reader, Any] = {"texts": list[str], "whole": int, "flag": bool}


def taken_from(record: type) -> Callable[[Command], Command]:
    """For a command `body(console, **given)`: it has the options of `record`; its argument is the first field."""

    def decorated(body: Command) -> Command:
        console, *_ = inspect.signature(body, eval_str=True).parameters.values()
        body.__signature__ = inspect.Signature([console, *_parameters(record)])  # type: ignore[attr-defined]
        return body

    return decorated


def read(record: type, given: dict[str, Any]) -> dict[str, Any]:
    """`given`, as Typer leaves it, as the values of `record`'s fields; of ratios always a list, None where none is
    given."""
    told = options_of(record)
    return {name: _read(name, told[name], value) for name, value in given.items() if value is not None}


def _parameters(record: type) -> list[inspect.Parameter]:
    told, found = options_of(record), []
    for field in fields(record):
        if (option := told.get(field.name)) is None:
            continue
        kind = _KINDS.get(option.reads, str)
        if field.default is MISSING:
            more: dict[str, Any] = {"annotation": Annotated[kind, typer.Argument(help=option.help, show_default=False)]}  # type: ignore[valid-type]
        else:
            default = None if option.reads == "texts" else field.default
            annotation = Annotated[kind if default is not None else kind | None, _option(field.name, option)]  # type: ignore[valid-type]
            more = {"annotation": annotation, "default": default}
        found.append(inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, **more))
    return found


def _option(name: str, option: Option) -> Any:
    return typer.Option(
        option.spelled(name),
        help=option.help,
        metavar=option.metavar,
        min=option.least,
        show_default=option.by_default or True,
    )


def _read(name: str, option: Option, value: Any) -> Any:
    reader = _READERS.get(option.reads)
    return value if reader is None else reader(option.spelled(name), value)


def _ratios(option: str, text: str) -> list[float]:
    """ "0.1,0.05" as numbers."""
    values = []
    for part in text.split(","):
        try:
            values.append(float(part))
        except ValueError as error:
            raise UsageError(f"{option} '{part}' is not a number", f"for example {option} 0.05") from error
    return values


def _data(option: str, text: str) -> str:
    """A folder of images on this machine, or a data set on the Hub."""
    from diffcompress.images.hub_images import is_id

    if not Path(text).expanduser().is_dir() and not is_id(text):
        raise UsageError(
            f"{option} '{text}' is neither a folder on this machine nor a data set's name",
            "name an image folder, or a data set on the Hub as owner/name or owner/name@revision",
        )
    return text


def _with_unit(option: str, text: str, units: dict[str, int], example: str) -> float:
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:e\+?[0-9]+)?)\s*([a-z]*)\s*", text.lower())
    if match is None or match[2] not in units or not 0 < float(match[1]) < math.inf:
        known = ", ".join(sorted((u for u in units if u), key=lambda u: (len(u), units[u])))
        raise UsageError(
            f"{option} '{text}' is not a positive number with a unit of {known}", f"for example {option} {example}"
        )
    return float(match[1]) * units[match[2]]


def _count(option: str, text: str) -> int:
    """ "40M" as a number."""
    return round(_with_unit(option, text, COUNTS, "40M"))


def _bytes(option: str, text: str) -> int:
    """ "80MB" as bytes; kB, MB, GB are powers of ten, KiB, MiB, GiB of two."""
    return round(_with_unit(option, text, BYTES, "80MB"))


def _seconds(option: str, text: str) -> float:
    """ "90s", "30m" or "8h" as seconds."""
    return _with_unit(option, text, SECONDS, "30m")


def _share(option: str, text: str) -> float:
    """ "5%" or "0.05" as 0.05."""
    number = text.strip().removesuffix("%")
    try:
        return float(number) / (100 if text.strip().endswith("%") else 1)
    except ValueError as error:
        raise UsageError(f"{option} '{text}' is not a share", f"for example {option} 5%") from error


_READERS: dict[Reader, Callable[[str, Any], Any]] = {
    "ratios": _ratios, "data": _data, "count": _count, "bytes": _bytes, "seconds": _seconds, "share": _share,
    "texts": lambda _, them: tuple(them),
}  # fmt: skip
