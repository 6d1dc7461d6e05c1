"""The user's own images as clean samples: a folder or a Hub data set, classes or captions respected."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from diffcompress.data import hub_images
from diffcompress.errors import UsageError
from diffcompress.runtime import Progress, StopRequest
from diffcompress.teacher.load import LoadedPipeline

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
METADATA = "metadata.jsonl"


@dataclass(frozen=True)
class Images:
    """clean: pixels `[N, C, H, W]` in [-1, 1]; index `[N]`: the row of the teacher's conditions of each image (its
    class label, or its caption's place among the prompts; 0 for unconditional teachers); source: the folder, or
    owner/name@commit; notes, warnings: for the user."""

    clean: Tensor
    index: Tensor
    warnings: list[str]
    source: str
    commit: str | None = None
    notes: tuple[str, ...] = ()


def read_for(
    data: str, teacher: LoadedPipeline, limit: int, progress: Progress, stop: StopRequest | None = None
) -> Images:
    """The images of `data` as `teacher`'s own pixels and conditions: all of a folder's, `limit` of a Hub data set's.

    Raises UsageError as `read` does, and what `hub_images.fetch` raises.
    """
    if len(teacher.sample_shape) != 3:
        raise UsageError(f"'{data}' holds images, the teacher makes videos", "leave --data out: it samples its own")
    shape = teacher.codec.pixel_shape(teacher.sample_shape) if teacher.codec else teacher.sample_shape
    texts = teacher.conditions.texts if teacher.takes_text else None
    num_classes = teacher.family.num_classes(teacher.config)
    if not hub_images.is_id(data):
        return read(Path(data), shape, num_classes, texts)
    fetched = hub_images.fetch(data, limit, progress, stop)
    fetched.check(num_classes, needs_text=texts is not None)
    found = read(fetched.folder, shape, num_classes, texts, limit)
    return replace(found, source=fetched.name, commit=fetched.commit, notes=fetched.notes)


def captions_of(data: str, limit: int, progress: Progress) -> list[str]:
    """Every caption of a folder, or those of the first `limit` images of a Hub data set, each once."""
    if not hub_images.is_id(data):
        return list(dict.fromkeys(captions(Path(data)).values()))
    fetched = hub_images.fetch(data, limit, progress)
    fetched.check(None, needs_text=True)
    told = captions(fetched.folder)
    return list(dict.fromkeys(told[path.name] for path in _files(fetched.folder)[:limit] if path.name in told))


def read(
    folder: Path,
    shape: tuple[int, ...],
    num_classes: int | None,
    prompts: tuple[str, ...] | None = None,
    limit: int | None = None,
) -> Images:
    """The first `limit` images below `folder`, cropped around their centre and resized to `shape` (C, H, W).

    prompts: of a text-conditional teacher, among which every image's caption is looked for; otherwise the label in
    `metadata.jsonl`, or the class subfolder, is its condition. Broken files are skipped and counted. Raises UsageError
    when the folder is missing, holds no readable image, a class-conditional teacher gets no classes or more of them
    than it has, or a text-conditional one no captions.
    """
    files = _files(folder)[:limit]
    rows, what = _conditions(folder, files, num_classes, prompts)
    pixels, index, broken, untold = [], [], [], 0
    for path in files:
        row = rows.get(path.relative_to(folder).as_posix()) if rows is not None else 0
        if row is None:
            untold += 1
            continue
        try:
            pixels.append(_pixels(path, shape))
        except (OSError, UnidentifiedImageError, ValueError, Image.DecompressionBombError):
            broken.append(path)
            continue
        index.append(row)
    if not pixels:
        raise UsageError(
            f"no readable image in '{folder}' ({len(broken)} broken, {untold} without a {what})",
            f"known kinds: {', '.join(sorted(SUFFIXES))}",
        )
    warnings = [f"{len(broken)} of {len(files)} images could not be read, first {broken[0]}"] if broken else []
    warnings += [f"{untold} of {len(files)} images have no {what} in {METADATA} and are left out"] if untold else []
    return Images(torch.stack(pixels), torch.tensor(index), warnings, str(folder))


def captions(folder: Path) -> dict[str, str]:
    """Caption by file name from `metadata.jsonl` (keys file_name and text, as Hub data sets have it).

    Raises UsageError when there is none or a line is not what it should be.
    """
    if not (folder / METADATA).is_file():
        raise UsageError(
            f"'{folder}' has no readable {METADATA}, and the teacher is text-conditional",
            'write one line for each image: {"file_name": "a.png", "text": "a caption"}',
        )
    found = {}
    for number, row in _metadata(folder):
        if "text" not in row:
            raise _bad_line(folder, number, "KeyError")
        if row["text"] is not None:
            found[row["file_name"]] = str(row["text"])
    return found


def _conditions(
    folder: Path, files: list[Path], num_classes: int | None, prompts: tuple[str, ...] | None
) -> tuple[dict[str, int] | None, str]:
    """The row of each file's condition by its name, and what kind it is; None for an unconditional teacher."""
    if prompts is not None:
        places = {text: number for number, text in enumerate(prompts)}
        return {name: places[text] for name, text in captions(folder).items() if text in places}, "caption"
    if num_classes is None:
        return None, ""
    return _labels(folder, num_classes) or _subfolders(folder, files, num_classes), "label"


def _labels(folder: Path, num_classes: int) -> dict[str, int]:
    """Class by file name from `metadata.jsonl`; empty where it tells of none."""
    if not (folder / METADATA).is_file():
        return {}
    found = {row["file_name"]: row["label"] for _, row in _metadata(folder) if isinstance(row.get("label"), int)}
    if bad := [name for name, label in found.items() if not 0 <= label < num_classes]:
        raise UsageError(
            f"'{bad[0]}' in '{folder}' has label {found[bad[0]]}, the teacher's go from 0 to {num_classes - 1}",
            "give images of the teacher's own classes",
        )
    return found


def _subfolders(folder: Path, files: list[Path], num_classes: int) -> dict[str, int]:
    """Class by file name: the place of its subfolder in alphabetical order."""
    parts = {path.relative_to(folder).as_posix(): path.relative_to(folder).parts for path in files}
    classes = sorted({part[0] for part in parts.values() if len(part) > 1})
    if not 0 < len(classes) <= num_classes:
        raise UsageError(
            f"'{folder}' has {len(classes)} class subfolders, the teacher has {num_classes} classes",
            "put the images of each class into one subfolder, named so that they sort by label",
        )
    if stray := [name for name, part in parts.items() if len(part) < 2]:
        raise UsageError(
            f"{folder / stray[0]} lies in no class subfolder, and the teacher is class-conditional", "move it into one"
        )
    return {name: classes.index(part[0]) for name, part in parts.items()}


def _metadata(folder: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and content, with a file_name, of every line; raises UsageError for what is none."""
    try:
        lines = (folder / METADATA).read_text(encoding="utf-8").splitlines()
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


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UsageError(
            f"no image folder at '{folder}'", "name a folder of images, or a data set on the Hub as owner/name"
        )
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)


def _pixels(path: Path, shape: tuple[int, ...]) -> Tensor:
    channels, height, width = shape
    with Image.open(path) as image:
        fitted = ImageOps.fit(image.convert("L" if channels == 1 else "RGB"), (width, height), Image.Resampling.BICUBIC)
    array = np.asarray(fitted, dtype=np.float32).reshape(height, width, -1)
    if array.shape[2] != channels:
        raise ValueError(f"{path} has {array.shape[2]} channels, not {channels}")
    return torch.from_numpy(array / 127.5 - 1.0).permute(2, 0, 1).contiguous()
