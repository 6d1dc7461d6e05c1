"""The user's own images as clean samples: a folder, class subfolders or captions respected."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from diffcompress.errors import UsageError
from diffcompress.teacher.load import LoadedPipeline

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
CAPTIONS = "metadata.jsonl"


@dataclass(frozen=True)
class Images:
    """clean: pixels `[N, C, H, W]` in [-1, 1]; index `[N]`: the row of the teacher's conditions of each image (its
    class label, or its caption's place among the prompts; 0 for unconditional teachers)."""

    clean: Tensor
    index: Tensor
    warnings: list[str]


def read(
    folder: Path, shape: tuple[int, ...], num_classes: int | None, prompts: tuple[str, ...] | None = None
) -> Images:
    """Every image below `folder`, cropped around its centre and resized to `shape` (C, H, W).

    prompts: of a text-conditional teacher, among which every image's caption is looked for. Broken files are skipped
    and counted. Raises UsageError when the folder is missing, holds no readable image, a class-conditional teacher
    gets no class subfolders or more of them than it has classes, or a text-conditional one no captions.
    """
    files = _files(folder)
    classes = sorted({path.relative_to(folder).parts[0] for path in files if len(path.relative_to(folder).parts) > 1})
    if num_classes is not None and not 0 < len(classes) <= num_classes:
        raise UsageError(
            f"'{folder}' has {len(classes)} class subfolders, the teacher has {num_classes} classes",
            "put the images of each class into one subfolder, named so that they sort by label",
        )
    texts = captions(folder) if prompts is not None else {}
    places = {text: number for number, text in enumerate(prompts or ())}
    pixels, index, broken, untold = [], [], [], 0
    for path in files:
        name = path.relative_to(folder).as_posix()
        if prompts is not None and texts.get(name) not in places:
            untold += 1
            continue
        try:
            pixels.append(_pixels(path, shape))
        except (OSError, UnidentifiedImageError, ValueError, Image.DecompressionBombError):
            broken.append(path)
            continue
        index.append(places[texts[name]] if prompts is not None else _label(path, folder, classes, num_classes))
    if not pixels:
        raise UsageError(
            f"no readable image in '{folder}' ({len(broken)} broken, {untold} without a caption)",
            f"known kinds: {', '.join(sorted(SUFFIXES))}",
        )
    warnings = [f"{len(broken)} of {len(files)} images could not be read, first {broken[0]}"] if broken else []
    warnings += [f"{untold} of {len(files)} images have no caption in {CAPTIONS} and are left out"] if untold else []
    return Images(torch.stack(pixels), torch.tensor(index), warnings)


def read_for(folder: str, teacher: LoadedPipeline) -> Images:
    """The images of `folder` as `teacher`'s own pixels and conditions; raises UsageError as `read` does."""
    if len(teacher.sample_shape) != 3:
        raise UsageError(f"'{folder}' holds images, the teacher makes videos", "leave --data out: it samples its own")
    shape = teacher.codec.pixel_shape(teacher.sample_shape) if teacher.codec else teacher.sample_shape
    texts = teacher.conditions.texts if teacher.takes_text else None
    return read(Path(folder), shape, teacher.family.num_classes(teacher.config), texts)


def captions(folder: Path) -> dict[str, str]:
    """Caption by file name from `metadata.jsonl` (keys file_name and text, as Hub data sets have it).

    Raises UsageError when there is none or a line is not what it should be.
    """
    file = folder / CAPTIONS
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"'{folder}' has no readable {CAPTIONS}, and the teacher is text-conditional",
            'write one line for each image: {"file_name": "a.png", "text": "a caption"}',
        ) from error
    found = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            found[str(row["file_name"])] = str(row["text"])
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"line {number} of {file} is not a caption ({type(error).__name__})",
                'write {"file_name": "a.png", "text": "a caption"}',
            ) from error
    return found


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UsageError(
            f"no image folder at '{folder}'", "name a folder of images; download a Hub data set into one first"
        )
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)


def _label(path: Path, folder: Path, classes: list[str], num_classes: int | None) -> int:
    if num_classes is None:
        return 0
    parts = path.relative_to(folder).parts
    if len(parts) < 2:
        raise UsageError(f"{path} lies in no class subfolder, and the teacher is class-conditional", "move it into one")
    return classes.index(parts[0])


def _pixels(path: Path, shape: tuple[int, ...]) -> Tensor:
    channels, height, width = shape
    with Image.open(path) as image:
        fitted = ImageOps.fit(image.convert("L" if channels == 1 else "RGB"), (width, height), Image.Resampling.BICUBIC)
    array = np.asarray(fitted, dtype=np.float32).reshape(height, width, -1)
    if array.shape[2] != channels:
        raise ValueError(f"{path} has {array.shape[2]} channels, not {channels}")
    return torch.from_numpy(array / 127.5 - 1.0).permute(2, 0, 1).contiguous()
