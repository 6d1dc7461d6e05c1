"""A pipeline's model_index.json and the other configs of a teacher, read and checked."""

from __future__ import annotations

import json
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffcompress.errors import UsageError

_LARGEST_CONFIG = 1 << 24
DENOISERS = ("unet", "transformer")


def parts_of(index: Mapping[str, Any]) -> list[str]:
    """The parts that a model_index.json names, the denoiser and the scheduler too."""
    return [
        k for k, v in index.items() if k.isidentifier() and isinstance(v, list) and len(v) == 2 and v[1] is not None
    ]


def left_out_of(index: Mapping[str, Any]) -> list[str]:
    """The tokenizers and text encoders that a model_index.json says are left out."""
    return [k for k, v in index.items() if k.startswith(("tokenizer", "text_encoder")) and v == [None, None]]


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
