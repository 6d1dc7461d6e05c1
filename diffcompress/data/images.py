"""The user's own images as clean samples: a folder or a Hub data set, classes or captions respected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from diffcompress.data import hub_images
from diffcompress.data.class_folders import class_folders
from diffcompress.data.metadata import METADATA, captions, labels_in, require_folder
from diffcompress.data.pixels import read_pixels
from diffcompress.errors import UsageError
from diffcompress.runtime import Progress, StopRequest
from diffcompress.teacher.load import LoadedPipeline

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})


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


def _conditions(
    folder: Path, files: list[Path], num_classes: int | None, prompts: tuple[str, ...] | None
) -> tuple[dict[str, int] | None, str, list[str]]:
    """The row of each file's condition by its name (None for an unconditional teacher), what kind it is, and notes."""
    if prompts is not None:
        places = {text: number for number, text in enumerate(prompts)}
        return {name: places[text] for name, text in captions(folder).items() if text in places}, "caption", []
    if num_classes is None:
        return None, "", []
    if labels := labels_in(folder, num_classes):
        return labels, "label", []
    labels, note = class_folders(folder, files, num_classes)
    return labels, "label", [note]


def _files(folder: Path) -> list[Path]:
    require_folder(folder)
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
