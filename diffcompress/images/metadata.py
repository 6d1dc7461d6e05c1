"""`metadata.jsonl` beside the user's images, as Hub data sets have it: the caption or label of each."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diffcompress.errors import UsageError
from diffcompress.images.columns import text_of
from diffcompress.images.folder import METADATA, plain_name
from diffcompress.images.prompts import unfit

_EXAMPLE = 'write {"file_name": "a.png", "text": "a caption", "label": 3}, text or label as the teacher takes them'


def captions(folder: Path) -> dict[str, str]:
    """Caption by file name (as `plain_name` spells it) from `metadata.jsonl`, keys file_name and text, as Hub data sets
    have it; of several captions the first.

    Raises UsageError when there is none or a line is not what it should be.
    """
    if not (folder / METADATA).is_file():
        raise UsageError(
            f"'{folder}' has no readable {METADATA}, and the teacher is text-conditional",
            'write one line for each image: {"file_name": "a.png", "text": "a caption"}',
        )
    found = {}
    for number, row in _rows(folder):
        if "text" not in row:
            raise _bad_line(folder, number, "has no text")
        text = text_of(row["text"])
        if text is None and row["text"] not in (None, []) and not isinstance(row["text"], str):
            raise _bad_line(folder, number, f"has the text {_short(row['text'])}, which is none")
        if text is not None and (told := unfit(text)):
            raise _bad_line(folder, number, f"has {told}")
        if text is not None:
            found[row["file_name"]] = text
    return found


def labels_in(folder: Path, num_classes: int) -> dict[str, int]:
    """Class by file name from `metadata.jsonl`; empty where it tells of none.

    Raises UsageError for labels that are no integers, and for those that a teacher of `num_classes` does not have.
    """
    if not (folder / METADATA).is_file():
        return {}
    found = {}
    for number, row in _rows(folder):
        if row.get("label") is None:
            continue
        label = _integer(row["label"])
        if label is None:
            raise _bad_line(folder, number, f"has the label {_short(row['label'])}, which is no integer")
        if not 0 <= label < num_classes:
            raise UsageError(
                f"'{row['file_name']}' in '{folder}' has label {label}, the teacher's go from 0 to {num_classes - 1}",
                "give images of the teacher's own classes",
            )
        found[row["file_name"]] = label
    return found


def _integer(value: Any) -> int | None:
    """An integer, however it is written; true and false are none."""
    if isinstance(value, str) and re.fullmatch("-?[0-9]{1,9}", value.strip()):
        return int(value)
    whole = isinstance(value, (int, float)) and not isinstance(value, bool) and value == value // 1
    return int(value) if whole and abs(value) < 10**9 else None


def _rows(folder: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and content, with a file_name, of every line; raises UsageError for what is none."""
    try:
        # Captions may hold what Python takes for the end of a line, such as U+2028.
        lines = (folder / METADATA).read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {folder / METADATA} ({type(error).__name__})", "save it as UTF-8") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _bad_line(folder, number, f"is no JSON ({error})") from error
        if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
            raise _bad_line(folder, number, "is no JSON object with a file_name")
        yield number, {**row, "file_name": plain_name(row["file_name"])}


def _bad_line(folder: Path, number: int, what: str) -> UsageError:
    return UsageError(f"line {number} of {folder / METADATA} {what}", _EXAMPLE)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:37]}..."
