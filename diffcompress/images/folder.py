"""A folder of the user's images: which files they are, their captions and labels, and what is passed over.

Captions and labels come from `metadata.jsonl` beside the images, as Hub data sets have it; labels from subfolders too.
"""

from __future__ import annotations

import json
import mimetypes
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from diffcompress import inputs
from diffcompress.errors import UsageError
from diffcompress.images.columns import stated_labels, text_of
from diffcompress.images.prompts import unfit

METADATA = "metadata.jsonl"
_USUAL = {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
SUFFIXES = frozenset(_USUAL | {".avif", ".jp2", ".pbm", ".pgm", ".ppm", ".pnm", ".tga"})
# What other programs leave beside images: old copies, thumbnails, and the resource forks of archives made on a Mac.
_OTHERS = ("__MACOSX", "@eaDir")
_MOST_KINDS = 5
_EXAMPLE = 'write {"file_name": "a.png", "text": "a caption", "label": 3}, text or label as the teacher takes them'
# Of more class subfolders than this a note tells the first few and the last.
_MOST_TOLD = 8


def image_files(folder: Path) -> list[Path]:
    """Every image below `folder`, in order; raises UsageError where there is no such folder."""
    found = (path for path in _walk(_required(folder)) if path.suffix.lower() in SUFFIXES)
    return sorted(path for path in found if path.is_file() or not path.exists())  # a pipe would be waited for


def passed_over(folder: Path) -> tuple[list[str], list[str]]:
    """Warnings and notes on the files below `folder` that are not taken: images of other kinds, and the rest."""
    others = [p for p in _walk(folder) if p.suffix.lower() not in SUFFIXES and p.name != METADATA]
    pictures = [path for path in others if (mimetypes.guess_type(path.name)[0] or "").startswith("image/")]
    rest = [path for path in others if path not in set(pictures)]
    warnings = [f"{_kinds(pictures)} in '{folder}' are images of a kind that is not read"] if pictures else []
    return warnings, [f"{_kinds(rest)} in '{folder}' are no images by their names and are passed over"] if rest else []


def name_below(folder: Path, path: Path) -> str:
    """The name that `metadata.jsonl` has for the file `path` below `folder`."""
    return plain_name(path.relative_to(folder).as_posix())


def plain_name(text: str) -> str:
    """A file's name in one spelling: slashes, no leading "./", composed characters."""
    return unicodedata.normalize("NFC", PurePosixPath(text.replace("\\", "/")).as_posix())


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


def class_folders(folder: Path, files: list[Path], num_classes: int) -> tuple[dict[str, int], str]:
    """Class by file name: that of its subfolder; and a note of which subfolder is which class."""
    parts = {path.relative_to(folder).as_posix(): path.relative_to(folder).parts for path in files}
    labels = _label_by_class(folder, sorted({part[0] for part in parts.values() if len(part) > 1}), num_classes)
    if stray := [name for name, part in parts.items() if len(part) < 2]:
        raise UsageError(
            f"{folder / stray[0]} lies in no class subfolder, and the teacher is class-conditional", "move it into one"
        )
    told = [f"{name} = {label}" for name, label in sorted(labels.items(), key=lambda item: item[1])]
    if len(told) > _MOST_TOLD:
        told = [*told[: _MOST_TOLD - 2], "...", told[-1]]
    return {
        plain_name(name): labels[part[0]] for name, part in parts.items()
    }, f"labels by class subfolder: {', '.join(told)}"


def _required(folder: Path) -> Path:
    if not folder.is_dir():
        what = f"'{folder}' is a file, not a folder of images" if folder.is_file() else f"no image folder at '{folder}'"
        raise UsageError(what, "name a folder of images, or a data set on the Hub as owner/name")
    return folder


def _walk(folder: Path) -> Iterator[Path]:
    """All files below `folder`, through links to folders too, but for hidden ones.

    Below one subfolder, such as a class, a folder counts once, however many links lead to it: in circles, or in mazes
    of more paths than one could walk.
    """
    for path in _entries(folder):
        waiting, seen = [path], {folder.resolve()}
        while waiting:
            next_ = waiting.pop()
            if not next_.is_dir():
                yield next_
            elif (here := next_.resolve()) not in seen:
                seen.add(here)
                waiting += reversed(_entries(next_))


def _entries(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if not p.name.startswith(".") and p.name not in _OTHERS)


def _kinds(files: Sequence[Path]) -> str:
    counts = Counter(path.suffix.lower() or path.name for path in files).most_common()
    told = [f"{count:,} {kind}" for kind, count in counts[:_MOST_KINDS]]
    return f"{len(files):,} files ({', '.join([*told, *(['...'] if len(counts) > _MOST_KINDS else [])])})"


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
        lines = inputs.read_text(folder / METADATA, encoding="utf-8-sig").split("\n")
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


def _label_by_class(folder: Path, classes: list[str], num_classes: int) -> dict[str, int]:
    """Names that are all integers state the labels; others stand for them in order, if there is one for each."""
    if stated := stated_labels(classes):
        labels = dict(zip(classes, stated, strict=True))
        for name, label in labels.items():
            if not 0 <= label < num_classes:
                raise UsageError(
                    f"class subfolder '{folder / name}' states label {label}, the teacher's go from 0 to "
                    f"{num_classes - 1}",
                    "give images of the teacher's own classes",
                )
        return labels
    if len(classes) != num_classes:
        raise UsageError(
            f"'{folder}' has {len(classes)} class subfolders, the teacher has {num_classes} classes",
            "make one for each class, which sort by label, or name each by its label: integer names state labels",
        )
    return {name: label for label, name in enumerate(classes)}
