"""A pipeline's model_index.json and the other configs of a teacher, read and checked."""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from diffcompress.errors import UsageError

_LARGEST_CONFIG = 1 << 24
DENOISERS = ("unet", "transformer")
# The most of what the values of a config count, by their key.
_MOST = {"layer|heads": 1_000, "sample_size|frames": 10_000, "": 10**9}
# Keys whose numbers count something.
_COUNTED = re.compile("channels|heads|layers|groups|(^|_)(num|dim|dims|size)(_|$)")
_COMPARE = "compare it with the config.json that save_pretrained made"


def parts_of(index: Mapping[str, Any]) -> list[str]:
    """The parts that a model_index.json names, the denoiser and the scheduler too."""
    return [
        k for k, v in index.items() if k.isidentifier() and isinstance(v, list) and len(v) == 2 and v[1] is not None
    ]


def left_out_of(index: Mapping[str, Any]) -> list[str]:
    """The tokenizers and text encoders that a model_index.json says are left out."""
    return [k for k, v in index.items() if k.startswith(("tokenizer", "text_encoder")) and v == [None, None]]


def leaving_out(index: Mapping[str, Any], parts: Collection[str]) -> dict[str, Any]:
    """A model_index.json of the same pipeline without `parts`, as diffusers writes it for parts that are None."""
    return {name: [None, None] if name in parts else value for name, value in index.items()}


def read_config(path: Path) -> dict[str, Any]:
    """One of a teacher's configs; raises UsageError when it is missing, no regular file, large or no JSON object."""
    advice = "check that the download is complete"
    try:
        kind = path.stat()
        if not stat.S_ISREG(kind.st_mode):  # a named pipe would be waited for
            raise UsageError(f"{path} is no regular file", "name the folder that save_pretrained made")
        if kind.st_size > _LARGEST_CONFIG:
            raise UsageError(f"{path} has {kind.st_size:,} bytes, and no config is as large", advice)
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", advice) from error
    except (ValueError, RecursionError) as error:
        why = "too deeply nested" if isinstance(error, RecursionError) else error
        raise UsageError(f"{path} is not valid JSON ({why})", advice) from error
    if not isinstance(value, dict):
        raise UsageError(f"{path} holds no JSON object", advice)
    return value


def check_config(config: Mapping[str, Any], where: object, *, counts: bool = True) -> None:
    """Raise UsageError for numbers that no model has, with which building one would not end.

    counts: where keys are known, numbers that count something are whole, too.
    """
    for key, value in config.items():
        largest = next(most for part, most in _MOST.items() if re.search(part, key))
        for number in _numbers(value):
            if not abs(number) <= largest:
                raise UsageError(
                    f"the config of '{where}' has {number!r} in {key}, where no model has more than {largest:,}",
                    _COMPARE,
                )
            if counts and _COUNTED.search(key) and (number < 0 or number != int(number)):
                raise UsageError(f"the config of '{where}' has {number!r} in {key}, which counts something", _COMPARE)


def _numbers(value: object) -> Iterator[float]:
    """All numbers in a config's value, those in its lists too."""
    if isinstance(value, (int, float)):
        yield value
    for inner in value if isinstance(value, list) else ():
        yield from _numbers(inner)
