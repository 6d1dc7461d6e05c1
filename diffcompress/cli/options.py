"""From the text of an option to its value; every error names the option, the text and an example. Loads no torch."""

from __future__ import annotations

import math
import re
from pathlib import Path

from diffcompress.errors import UsageError
from diffcompress.jobs import target
from diffcompress.recipe import METHODS, nearest

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_COUNT = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9}
_BYTES = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def ratios(text: str | None) -> list[float] | None:
    """ "0.1,0.05" as numbers between 0 and 1."""
    if text is None:
        return None
    values = []
    for part in text.split(","):
        try:
            values.append(float(part))
        except ValueError as error:
            raise UsageError(f"--ratio '{part}' is not a number", "for example --ratio 0.05") from error
        target.check_ratio(values[-1])
    return values


def params(text: str | None) -> int | None:
    """ "40M" as a number of parameters."""
    return None if text is None else round(_with_unit("--params", text, _COUNT, "40M"))


def size(text: str | None) -> int | None:
    """ "80MB" as bytes; kB, MB, GB are powers of ten, KiB, MiB, GiB of two."""
    return None if text is None else round(_with_unit("--size", text, _BYTES, "80MB"))


def seconds(text: str | None) -> float | None:
    """ "90s", "30m" or "8h" as seconds."""
    return None if text is None else _with_unit("--max-time", text, _SECONDS, "30m")


def method(text: str) -> str:
    if text not in METHODS:
        raise UsageError(f"unknown method '{text}'", f"choose one of {', '.join(METHODS)}{nearest(text, METHODS)}")
    return text


def data(text: str | None) -> str | None:
    """A folder of images on this machine, or a data set on the Hub."""
    from diffcompress.images.hub_images import is_id

    if text is not None and not Path(text).expanduser().is_dir() and not is_id(text):
        raise UsageError(
            f"--data '{text}' is neither a folder on this machine nor a data set's name",
            "name an image folder, or a data set on the Hub as owner/name or owner/name@revision",
        )
    return text


def check_push(repo: str | None, public: bool) -> None:
    """Refuse --public alone: it would be silently without effect."""
    if public and repo is None:
        raise UsageError("--public says nothing without --push-to-hub", "add --push-to-hub owner/name")


def _with_unit(option: str, text: str, units: dict[str, int], example: str) -> float:
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:e\+?[0-9]+)?)\s*([a-z]*)\s*", text.lower())
    if match is None or match[2] not in units or not 0 < float(match[1]) < math.inf:
        known = ", ".join(sorted((u for u in units if u), key=lambda u: (len(u), units[u])))
        raise UsageError(
            f"{option} '{text}' is not a positive number with a unit of {known}", f"for example {option} {example}"
        )
    return float(match[1]) * units[match[2]]
