"""The user's own images as clean samples: a folder, class subfolders respected."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from diffcompress.errors import UsageError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})


@dataclass(frozen=True)
class Images:
    """clean `[N, C, H, W]` in [-1, 1]; conditioning: class_labels `[N]` for class-conditional teachers."""

    clean: Tensor
    conditioning: dict[str, Tensor]
    warnings: list[str]


def read(folder: Path, shape: tuple[int, ...], num_classes: int | None) -> Images:
    """Every image below `folder`, cropped around its centre and resized to `shape` (C, H, W).

    Broken files are skipped and counted. Raises UsageError when the folder is missing, holds no readable image, or a
    class-conditional teacher gets no class subfolders or more of them than it has classes.
    """
    if not folder.is_dir():
        raise UsageError(
            f"no image folder at '{folder}'", "name a folder of images; Hub data sets are not supported yet"
        )
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    classes = sorted({path.relative_to(folder).parts[0] for path in files if len(path.relative_to(folder).parts) > 1})
    if num_classes is not None and not 0 < len(classes) <= num_classes:
        raise UsageError(
            f"'{folder}' has {len(classes)} class subfolders, the teacher has {num_classes} classes",
            "put the images of each class into one subfolder, named so that they sort by label",
        )
    pixels, labels, broken = [], [], []
    for path in files:
        try:
            pixels.append(_pixels(path, shape))
        except (OSError, UnidentifiedImageError, ValueError, Image.DecompressionBombError):
            broken.append(path)
            continue
        if num_classes is not None:
            parts = path.relative_to(folder).parts
            if len(parts) < 2:
                raise UsageError(
                    f"{path} lies in no class subfolder, and the teacher is class-conditional", "move it into one"
                )
            labels.append(classes.index(parts[0]))
    if not pixels:
        raise UsageError(
            f"no readable image in '{folder}' ({len(broken)} broken)", f"known kinds: {', '.join(sorted(SUFFIXES))}"
        )
    warnings = [f"{len(broken)} of {len(files)} images could not be read, first {broken[0]}"] if broken else []
    conditioning = {"class_labels": torch.tensor(labels)} if num_classes is not None else {}
    return Images(torch.stack(pixels), conditioning, warnings)


def _pixels(path: Path, shape: tuple[int, ...]) -> Tensor:
    channels, height, width = shape
    with Image.open(path) as image:
        fitted = ImageOps.fit(image.convert("L" if channels == 1 else "RGB"), (width, height), Image.Resampling.BICUBIC)
    array = np.asarray(fitted, dtype=np.float32).reshape(height, width, -1)
    if array.shape[2] != channels:
        raise ValueError(f"{path} has {array.shape[2]} channels, not {channels}")
    return torch.from_numpy(array / 127.5 - 1.0).permute(2, 0, 1).contiguous()
