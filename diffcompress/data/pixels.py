"""One image file as a tensor: turned, cropped and resized, on white, in 8 bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor


def read_pixels(path: Path, shape: tuple[int, ...]) -> tuple[Tensor, tuple[int, int]]:
    """Pixels `[C, H, W]` of `shape` in 0..255, and the (width, height) that they were made of."""
    channels, height, width = shape
    with Image.open(path) as opened:
        image = ImageOps.exif_transpose(opened)
    if image.mode.startswith("I"):
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
    """Grey of 0 to 65535 as grey of 0 to 255, its transparent shade as white. Raises ValueError for other values."""
    grey = np.asarray(image, dtype=np.float32)
    if grey.min() < 0 or grey.max() > 65535:
        raise ValueError(f"grey values from {grey.min():g} to {grey.max():g} do not fit into 16 bits")
    if "transparency" in image.info:
        grey = np.where(grey == image.info["transparency"], 65535, grey)
    # Pillow would clip at 255 instead.
    return Image.fromarray((grey / 257).round().astype(np.uint8))
