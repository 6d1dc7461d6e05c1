"""The user's own images as clean samples: a folder or a Hub data set, classes or captions respected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from diffcompress.errors import DoesNotFitError, UsageError
from diffcompress.images import hub_images
from diffcompress.images.folder import (
    METADATA,
    SUFFIXES,
    captions,
    class_folders,
    image_files,
    labels_in,
    name_below,
    passed_over,
)
from diffcompress.images.pixels import SHARD_SIZE, Images, read_pixels
from diffcompress.noise import generator, streams
from diffcompress.pipeline.load import LoadedPipeline
from diffcompress.records import units
from diffcompress.runtime import Progress, StopRequest, free_memory

T = TypeVar("T")


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
    listed = image_files(fetched.folder)[:limit]  # numbered in a mixed order
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
        taken = {name_below(folder, path) for path in mixed(image_files(folder), limit)[:limit]}
        told = captions(folder)
        return list(dict.fromkeys(text for name, text in told.items() if name in taken))
    fetched = hub_images.fetch(data, limit, progress)
    fetched.check(None, needs_text=True)
    told = captions(fetched.folder)
    return list(dict.fromkeys(told[path.name] for path in image_files(fetched.folder)[:limit] if path.name in told))


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
    every = image_files(folder) if files is None else list(files)
    warnings, notes = passed_over(folder) if files is None else ([], [])
    rows, what, note = _conditions(folder, every, num_classes, prompts)
    notes += note
    absent = sorted(set(rows or ()) - {name_below(folder, path) for path in every})
    if absent:
        warnings.append(f"{len(absent):,} lines of {METADATA} name no image of '{folder}', first '{absent[0]}'")
    order = mixed(every, limit)
    if prompts is not None:
        order = order[:limit]  # the captions of no others are among the prompts
    stored, sizes, kept, broken, untold = _pixels(folder, order, shape, rows, limit or len(order), progress, stop)
    if order and untold == len(order):
        first = f", whose lines name other files, first '{absent[0]}'" if absent else ""
        raise UsageError(
            f"none of the {untold} images in '{folder}' has a {what} in {METADATA}{first}",
            f"file_name is the name of the image below the folder, such as '{name_below(folder, order[0])}'",
        )
    if not kept:
        raise UsageError(
            f"no readable image in '{folder}' ({len(broken)} broken{f', {untold} without a {what}' if what else ''})",
            f"known kinds: {', '.join(sorted(SUFFIXES))}",
        )
    tried = len(kept) + len(broken) + untold
    warnings += [f"{len(broken)} of {tried} images could not be read, first {broken[0]}"] if broken else []
    warnings += [f"{untold} of {tried} images have no {what} in {METADATA} and are left out"] if untold else []
    if tried < len(every):
        notes.append(
            f"{len(kept):,} of the {len(every):,} images in '{folder}' are taken, in one fixed mixed order: "
            "bank.num_samples of shrink and --num-samples of evaluate say how many"
        )
    told = _fitted(sizes, shape)
    return Images(stored, torch.tensor(kept), warnings + told[0], str(folder), notes=(*notes, *told[1]))


def _pixels(
    folder: Path,
    files: Sequence[Path],
    shape: tuple[int, ...],
    rows: Mapping[str, int] | None,
    limit: int,
    progress: Progress | None,
    stop: StopRequest | None,
) -> tuple[Tensor, list[tuple[int, int]], list[int], list[str], int]:
    """Pixels `[n, *shape]` of the first `limit` that can be read and have a row, their (width, height) and rows; what
    is broken before them, and how many have no row."""
    limit = min(limit, len(files))
    _check_memory(limit, shape)
    stored = torch.empty(limit, *shape, dtype=torch.uint8)
    sizes: list[tuple[int, int]] = []
    kept: list[int] = []
    broken: list[str] = []
    untold = 0
    for path in files:
        if len(kept) == limit:
            break
        row = rows.get(name_below(folder, path)) if rows is not None else 0
        if row is None:
            untold += 1
            continue
        try:
            stored[len(kept)], size = read_pixels(path, shape)
        except (OSError, UnidentifiedImageError, ValueError, Image.DecompressionBombError) as error:
            broken.append(f"{path} ({' '.join(str(error).split()) or type(error).__name__})")
            continue
        sizes.append(size)
        kept.append(row)
        if progress is not None:
            progress.update("images", len(kept), limit)
        if stop is not None:
            stop.raise_if_set()
    return stored[: len(kept)], sizes, kept, broken, untold


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
    """`found` as it is or, where it is more than `limit`, in an order that follows from its length alone."""
    if limit is None or len(found) <= limit:
        return list(found)
    order = torch.randperm(len(found), generator=generator(streams.IMAGE_ORDER))
    return [found[number] for number in order.tolist()]


def _check_memory(count: int, shape: tuple[int, ...]) -> None:
    """Raise DoesNotFitError where the stored images, and the values of one part, would fill memory."""
    needed = (count + 8 * min(count, SHARD_SIZE)) * torch.Size(shape).numel()
    free = free_memory(torch.device("cpu"))
    if needed > free:
        raise DoesNotFitError(
            f"{count:,} images of {shape[-1]} x {shape[-2]} need {units.size(needed)} of memory, "
            f"{units.size(free)} are free",
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
