"""The user's own images as clean samples: a folder or a Hub data set, classes or captions respected."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from diffcompress.data import hub_images
from diffcompress.data.class_folders import class_folders
from diffcompress.data.metadata import METADATA, captions, labels_in, require_folder
from diffcompress.data.pixels import read_pixels
from diffcompress.errors import DoesNotFitError, UsageError
from diffcompress.noise import generator
from diffcompress.runtime import Progress, StopRequest, free_memory
from diffcompress.teacher.load import LoadedPipeline

T = TypeVar("T")

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})


# Images whose values are computed with at a time.
SHARD_SIZE = 128
ORDER_STREAM = 12


@dataclass(frozen=True)
class Images:
    """stored: pixels `[N, C, H, W]` in 0..255, a quarter of what they are as numbers to compute with (`pixels`); index
    `[N]`: the row of the teacher's conditions of each image (its class label, or its caption's place among the prompts;
    0 for unconditional teachers); source: the folder, or owner/name@commit; notes, warnings: for the user."""

    stored: Tensor
    index: Tensor
    warnings: list[str]
    source: str
    commit: str | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.stored)

    def pixels(self, start: int = 0, stop: int | None = None) -> Tensor:
        """The images start..stop-1 (default: all), in [-1, 1] as models see them."""
        return torch.from_numpy(self.stored[start:stop].numpy().astype(np.float32) / 127.5 - 1.0)

    def parts(self) -> Iterator[Tensor]:
        """All images as `pixels`, SHARD_SIZE at a time."""
        return (self.pixels(start, start + SHARD_SIZE) for start in range(0, len(self), SHARD_SIZE))

    @property
    def digest(self) -> str:
        """SHA-256 of all pixels."""
        found = hashlib.sha256()
        for part in self.parts():
            found.update(part.numpy().tobytes())
        return found.hexdigest()

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
    """At most `limit` images of `data` as `teacher`'s own pixels and conditions.

    prompts: of a text-conditional teacher, among which every image's caption is looked for. Raises UsageError and
    DoesNotFitError as `read` does, and what `hub_images.fetch` raises.
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
        return read(Path(data), shape, num_classes, texts, limit, progress, stop)
    fetched = hub_images.fetch(data, limit, progress, stop)
    fetched.check(num_classes, needs_text=texts is not None)
    listed = _files(fetched.folder)[:limit]  # numbered in a mixed order
    found = read(fetched.folder, shape, num_classes, texts, None, progress, stop, files=listed)
    own = len(fetched.columns.classes or ())
    if texts is None and num_classes is not None and 0 < own < num_classes:
        found.warnings.append(
            f"'{fetched.id}' has {own} classes, the teacher {num_classes}: labels are taken as they are"
        )
    return replace(found, source=fetched.name, commit=fetched.commit, notes=(*fetched.notes, *found.notes))


def captions_of(data: str, limit: int, progress: Progress) -> list[str]:
    """The captions of those images of `data` that `read_for` takes, each once."""
    if not hub_images.is_id(data):
        folder = Path(data)
        told = captions(folder)
        taken = {path.relative_to(folder).as_posix() for path in mixed(_files(folder), limit)}
        return list(dict.fromkeys(text for name, text in told.items() if name in taken))
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
    progress: Progress | None = None,
    stop: StopRequest | None = None,
    *,
    files: Sequence[Path] | None = None,
) -> Images:
    """`limit` images below `folder` (default all; or `files`), cropped around their centre and resized to `shape`.

    They are turned as their EXIF says, and what is transparent lies on white. prompts: of a text-conditional teacher,
    among which every image's caption is looked for; otherwise the label in `metadata.jsonl`, or the class subfolder
    (its name where all of them are integers, else its place in sorted order), is its condition. Broken files are
    skipped and counted. Raises UsageError when the folder is missing or holds no readable image, when the classes are
    not those of a class-conditional teacher, or a text-conditional one gets no captions; DoesNotFitError when memory
    cannot hold them; RunStopped or RunInterrupted when `stop` is set.
    """
    every = _files(folder) if files is None else list(files)
    rows, what, notes = _conditions(folder, every, num_classes, prompts)
    taken = mixed(every, limit)
    if len(taken) < len(every):
        notes.append(
            f"{len(taken):,} of the {len(every):,} images in '{folder}' are taken, in one fixed mixed order: "
            "bank.num_samples of shrink and --num-samples of evaluate say how many"
        )
    _check_memory(len(taken), shape)
    stored = torch.empty(len(taken), *shape, dtype=torch.uint8)
    sizes, index, broken, untold = [], [], [], 0
    for number, path in enumerate(taken, 1):
        row = rows.get(path.relative_to(folder).as_posix()) if rows is not None else 0
        if row is None:
            untold += 1
            continue
        try:
            stored[len(index)], size = read_pixels(path, shape)
        except (OSError, UnidentifiedImageError, ValueError, Image.DecompressionBombError):
            broken.append(path)
            continue
        sizes.append(size)
        index.append(row)
        if progress is not None:
            progress.update("images", number, len(taken))
        if stop is not None:
            stop.raise_if_set()
    if not index:
        raise UsageError(
            f"no readable image in '{folder}' ({len(broken)} broken{f', {untold} without a {what}' if what else ''})",
            f"known kinds: {', '.join(sorted(SUFFIXES))}",
        )
    warnings = [f"{len(broken)} of {len(taken)} images could not be read, first {broken[0]}"] if broken else []
    warnings += [f"{untold} of {len(taken)} images have no {what} in {METADATA} and are left out"] if untold else []
    told = _fitted(sizes, shape)
    kept = stored[: len(index)]
    return Images(kept, torch.tensor(index), warnings + told[0], str(folder), notes=(*notes, *told[1]))


def _fitted(sizes: Sequence[tuple[int, int]], shape: tuple[int, ...]) -> tuple[list[str], list[str]]:
    """Warnings and notes on what was done to images of these (width, height) to give them `shape`."""
    height, width = shape[1:]
    warnings, notes = [], []
    if small := sum(own[0] < width or own[1] < height for own in sizes):
        warnings.append(f"{small} of {len(sizes)} images are smaller than {width} x {height} and were enlarged")
    if cropped := sum(own[0] * height != own[1] * width for own in sizes):
        notes.append(
            f"{cropped} of {len(sizes)} images were cropped around their centre to the shape {width} x {height}"
        )
    return warnings, notes


def mixed(found: Sequence[T], limit: int | None) -> list[T]:
    """All of `found` or, where they are more than `limit`, so many of them, picked by their number alone."""
    if limit is None or len(found) <= limit:
        return list(found)
    order = torch.randperm(len(found), generator=generator(ORDER_STREAM))
    return [found[number] for number in order[:limit].tolist()]


def _check_memory(count: int, shape: tuple[int, ...]) -> None:
    """Raise DoesNotFitError where the stored images, and the values of one part, would fill memory."""
    needed = (count + 8 * min(count, SHARD_SIZE)) * torch.Size(shape).numel()
    free = free_memory(torch.device("cpu"))
    if needed > free:
        raise DoesNotFitError(
            f"{count:,} images of {shape[-1]} x {shape[-2]} need {needed / 1e9:.3g} GB of memory, {free / 1e9:.3g} GB "
            "are free",
            "take fewer: --set bank.num_samples in shrink, --num-samples in evaluate",
        )


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
