"""`metadata.jsonl` beside the user's images, as Hub data sets have it: the caption or label of each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diffcompress.errors import UsageError

METADATA = "metadata.jsonl"


def captions(folder: Path) -> dict[str, str]:
    """Caption by file name from `metadata.jsonl` (keys file_name and text, as Hub data sets have it).

    Raises UsageError when there is none or a line is not what it should be.
    """
    require_folder(folder)
    if not (folder / METADATA).is_file():
        raise UsageError(
            f"'{folder}' has no readable {METADATA}, and the teacher is text-conditional",
            'write one line for each image: {"file_name": "a.png", "text": "a caption"}',
        )
    found = {}
    for number, row in _rows(folder):
        if "text" not in row:
            raise _bad_line(folder, number, "KeyError")
        if row["text"] is not None:
            found[row["file_name"]] = str(row["text"])
    return found


def labels_in(folder: Path, num_classes: int) -> dict[str, int]:
    """Class by file name from `metadata.jsonl`; empty where it tells of none."""
    if not (folder / METADATA).is_file():
        return {}
    found = {row["file_name"]: row["label"] for _, row in _rows(folder) if isinstance(row.get("label"), int)}
    if bad := [name for name, label in found.items() if not 0 <= label < num_classes]:
        raise UsageError(
            f"'{bad[0]}' in '{folder}' has label {found[bad[0]]}, the teacher's go from 0 to {num_classes - 1}",
            "give images of the teacher's own classes",
        )
    return found


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
            yield number, {**row, "file_name": str(row["file_name"])}
        except (ValueError, KeyError, TypeError) as error:
            raise _bad_line(folder, number, type(error).__name__) from error


def _bad_line(folder: Path, number: int, why: str) -> UsageError:
    return UsageError(
        f"line {number} of {folder / METADATA} is not a caption ({why})",
        'write {"file_name": "a.png", "text": "a caption"}',
    )


def require_folder(folder: Path) -> None:
    """Raise UsageError where there is no such folder."""
    if not folder.is_dir():
        what = f"'{folder}' is a file, not a folder of images" if folder.is_file() else f"no image folder at '{folder}'"
        raise UsageError(what, "name a folder of images, or a data set on the Hub as owner/name")
