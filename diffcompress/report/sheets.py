"""Image sheets: a grid of samples as one PNG."""

from __future__ import annotations

import math
from pathlib import Path

from PIL import Image
from torch import Tensor

from diffcompress.records.run_files import write_atomically


def grid(images: Tensor, columns: int | None = None) -> Image.Image:
    """`images` `[N, C, H, W]` in [-1, 1], C of 1 or 3 (more: the first is shown), as one picture, row by row.

    Of videos `[N, C, frames, H, W]` the middle frames.
    """
    if images.dim() == 5:  # a video's middle frame
        images = images[:, :, images.shape[2] // 2]
    count, channels, height, width = images.shape
    shown = images if channels in (1, 3) else images[:, :1]
    columns = columns or math.ceil(math.sqrt(count))
    rows = -(-count // columns)
    pixels = ((shown.float().clamp(-1, 1) + 1) * 127.5).round().byte()
    sheet = pixels.new_zeros(shown.shape[1], rows * height, columns * width)
    for number, image in enumerate(pixels):
        top, left = number // columns * height, number % columns * width
        sheet[:, top : top + height, left : left + width] = image
    array = sheet.permute(1, 2, 0).squeeze(-1).cpu().numpy()
    return Image.fromarray(array)


def write_sheet(images: Tensor, path: Path, columns: int | None = None) -> None:
    write_atomically(path, lambda part: grid(images, columns).save(part, format="PNG"))
