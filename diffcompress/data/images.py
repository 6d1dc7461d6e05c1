"""The user's own images as clean samples: a folder or a Hub data set, classes or captions respected."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from diffcompress.data import hub_images
from diffcompress.data.columns import stated_labels
from diffcompress.data.pixels import read_pixels
from diffcompress.errors import UsageError
from diffcompress.runtime import Progress, StopRequest
from diffcompress.teacher.load import LoadedPipeline

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
METADATA = "metadata.jsonl"
# Of more class subfolders than this a note tells the first few and the last.
MOST_TOLD = 8


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

    def tell(self, progress: Progress) -> None:
        """What a person should know of them: notes and warnings."""
        for text in self.notes:
            progress.note(text)
        for text in self.warnings:
            progress.warn(text)


def read_for(
    data: str,
    teacher: LoadedPipeline,
    prompts: Sequence[str],
    limit: int,
    progress: Progress,
    stop: StopRequest | None = None,
) -> Images:
    """The images of `data` as `teacher`'s own pixels and conditions: all of a folder's, `limit` of a Hub data set's.

    prompts: of a text-conditional teacher, among which every image's caption is looked for. Raises UsageError as `read`
    does, and what `hub_images.fetch` raises.
    """
    if len(teacher.sample_shape) != 3:
        raise UsageError(f"'{data}' holds images, the teacher makes videos", "leave --data out: it samples its own")
    shape = teacher.codec.pixel_shape(teacher.sample_shape) if teacher.codec else teacher.sample_shape
    # Four channels of a whole pipeline without an autoencoder are RGBA.
    whole = teacher.codec is not None or teacher.reference.pipeline is not None
    if shape[0] not in ((1, 3, 4) if whole else (1, 3)):
        raise UsageError(
            f"'{data}' holds images, and the teacher's samples of {shape[0]} channels are none",
            "name its whole pipeline, with the autoencoder, or leave --data out: it samples its own",
        )
    texts = tuple(prompts) if teacher.takes_text else None
    num_classes = teacher.family.num_classes(teacher.config)
    if not hub_images.is_id(data):
        return read(Path(data), shape, num_classes, texts)
    fetched = hub_images.fetch(data, limit, progress, stop)
    fetched.check(num_classes, needs_text=texts is not None)
    found = read(fetched.folder, shape, num_classes, texts, limit)
    own = len(fetched.columns.classes or ())
    if texts is None and num_classes is not None and 0 < own < num_classes:
        found.warnings.append(
            f"'{fetched.id}' has {own} classes, the teacher {num_classes}: labels are taken as they are"
        )
    return replace(found, source=fetched.name, commit=fetched.commit, notes=(*fetched.notes, *found.notes))


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

    They are turned as their EXIF says, and what is transparent lies on white. prompts: of a text-conditional teacher,
    among which every image's caption is looked for; otherwise the label in `metadata.jsonl`, or the class subfolder
    (its name where all of them are integers, else its place in sorted order), is its condition. Broken files are
    skipped and counted. Raises UsageError when the folder is missing or holds no readable image, when the classes are
    not those of a class-conditional teacher, or a text-conditional one gets no captions.
    """
    files = _files(folder)[:limit]
    rows, what, notes = _conditions(folder, files, num_classes, prompts)
    pixels, sizes, index, broken, untold = [], [], [], [], 0
    for path in files:
        row = rows.get(path.relative_to(folder).as_posix()) if rows is not None else 0
        if row is None:
            untold += 1
            continue
        try:
            image, size = read_pixels(path, shape)
        except (OSError, UnidentifiedImageError, ValueError, Image.DecompressionBombError):
            broken.append(path)
            continue
        pixels.append(image)
        sizes.append(size)
        index.append(row)
    if not pixels:
        raise UsageError(
            f"no readable image in '{folder}' ({len(broken)} broken{f', {untold} without a {what}' if what else ''})",
            f"known kinds: {', '.join(sorted(SUFFIXES))}",
        )
    warnings = [f"{len(broken)} of {len(files)} images could not be read, first {broken[0]}"] if broken else []
    warnings += [f"{untold} of {len(files)} images have no {what} in {METADATA} and are left out"] if untold else []
    height, width = shape[1:]
    if small := sum(own[0] < width or own[1] < height for own in sizes):
        warnings.append(f"{small} of {len(sizes)} images are smaller than {width} x {height} and were enlarged")
    if cropped := sum(own[0] * height != own[1] * width for own in sizes):
        notes.append(
            f"{cropped} of {len(sizes)} images were cropped around their centre to the shape {width} x {height}"
        )
    return Images(torch.stack(pixels), torch.tensor(index), warnings, str(folder), notes=tuple(notes))


def captions(folder: Path) -> dict[str, str]:
    """Caption by file name from `metadata.jsonl` (keys file_name and text, as Hub data sets have it).

    Raises UsageError when there is none or a line is not what it should be.
    """
    _require_folder(folder)
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
) -> tuple[dict[str, int] | None, str, list[str]]:
    """The row of each file's condition by its name (None for an unconditional teacher), what kind it is, and notes."""
    if prompts is not None:
        places = {text: number for number, text in enumerate(prompts)}
        return {name: places[text] for name, text in captions(folder).items() if text in places}, "caption", []
    if num_classes is None:
        return None, "", []
    if labels := _labels(folder, num_classes):
        return labels, "label", []
    labels, note = _subfolders(folder, files, num_classes)
    return labels, "label", [note]


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


def _subfolders(folder: Path, files: list[Path], num_classes: int) -> tuple[dict[str, int], str]:
    """Class by file name: that of its subfolder; and a note of which subfolder is which class."""
    parts = {path.relative_to(folder).as_posix(): path.relative_to(folder).parts for path in files}
    labels = _label_by_class(folder, sorted({part[0] for part in parts.values() if len(part) > 1}), num_classes)
    if stray := [name for name, part in parts.items() if len(part) < 2]:
        raise UsageError(
            f"{folder / stray[0]} lies in no class subfolder, and the teacher is class-conditional", "move it into one"
        )
    told = [f"{name} = {label}" for name, label in sorted(labels.items(), key=lambda item: item[1])]
    if len(told) > MOST_TOLD:
        told = [*told[: MOST_TOLD - 2], "...", told[-1]]
    return {name: labels[part[0]] for name, part in parts.items()}, f"labels by class subfolder: {', '.join(told)}"


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


def _metadata(folder: Path) -> Iterator[tuple[int, dict[str, Any]]]:
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


def _files(folder: Path) -> list[Path]:
    _require_folder(folder)
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)


def _require_folder(folder: Path) -> None:
    if not folder.is_dir():
        what = f"'{folder}' is a file, not a folder of images" if folder.is_file() else f"no image folder at '{folder}'"
        raise UsageError(what, "name a folder of images, or a data set on the Hub as owner/name")
