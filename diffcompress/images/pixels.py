"""Images in 8 bits, and one file as such: turned, cropped and resized, on white."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from diffcompress.records import fingerprints
from diffcompress.runtime import Progress

# Images whose values are computed with at a time.
SHARD_SIZE = 128


@dataclass(frozen=True)
class Images:
    """stored: pixels `[N, C, H, W]` in 0..255, a quarter of what they are as numbers to compute with (`pixels`);
    condition `[N]`: the row of the teacher's conditions of each image (its class label, or the place of its caption
    among the prompts; 0 for unconditional teachers); source: the folder, or owner/name@commit; notes, warnings: for
    the user."""

    stored: Tensor
    condition: Tensor
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
        return fingerprints.of_bytes(part.numpy().tobytes() for part in self.parts())

    def tell(self, progress: Progress) -> None:
        """What a person should know of them: notes and warnings."""
        for text in self.notes:
            progress.note(text)
        for text in self.warnings:
            progress.warn(text)


def read_pixels(path: Path, shape: tuple[int, ...]) -> tuple[Tensor, tuple[int, int]]:
    """Pixels `[C, H, W]` of `shape` in 0..255, and the (width, height) that they were made of."""
    channels, height, width = shape
    with Image.open(path) as opened:
        image = ImageOps.exif_transpose(opened)
    if image.mode.startswith(("I", "F")):
        image = _in_eight_bits(image)
    transparent = image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info
    if transparent and channels < 4:
        # The colour beneath transparency is whatever the editor left there, black as a rule.
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    mode = {1: "L", 4: "RGBA"}.get(channels, "RGB")
    fitted = ImageOps.fit(image.convert(mode), (width, height), Image.Resampling.BICUBIC)
    array = np.array(fitted, dtype=np.uint8).reshape(height, width, -1)
    if array.shape[2] != channels:
        raise ValueError(f"{path} has {array.shape[2]} channels, not {channels}")
    return torch.from_numpy(array).permute(2, 0, 1), image.size


def _in_eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 0 to 65535, its transparent shade as white, or in floating point of 0 to 1 or 255, as grey of 0 to 255.

    Raises ValueError for other values.
    """
    grey = np.asarray(image, dtype=np.float32)
    if image.mode == "F":
        if not (grey.min() >= 0 and grey.max() <= 255):
            raise ValueError(f"values from {grey.min():g} to {grey.max():g} lie neither in 0 to 1 nor in 0 to 255")
        return Image.fromarray((grey * (255 if grey.max() <= 1 else 1)).round().astype(np.uint8))
    if grey.min() < 0 or grey.max() > 65535:
        raise ValueError(f"grey values from {grey.min():g} to {grey.max():g} do not fit into 16 bits")
    if "transparency" in image.info:
        grey = np.where(grey == image.info["transparency"], 65535, grey)
    # Pillow would clip at 255 instead.
    return Image.fromarray((grey / 257).round().astype(np.uint8))
