"""Pictures in colour under a free licence: the emoji of Noto (Google; SIL Open Font License 1.1) as Debian's package
`fonts-noto-color-emoji` installs them, with the nine groups of Unicode's list (`unicode-data`) as labels."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fontTools.ttLib import TTFont
from PIL import Image
from torch import Tensor
from torch.nn import functional

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
LIST = Path("/usr/share/unicode/emoji/emoji-test.txt")
SIDE = 128
HELD_OUT = 5  # every fifth emoji, with its skin tones


def load(split: str, side: int) -> tuple[Tensor, Tensor]:
    """Images `[N, 3, side, side]` in [-1, 1] on white, and labels `[N]` of `split` ("train", and a fifth of all: "test").

    Raises SystemExit naming the Debian packages when font or list are not installed.
    """
    if not (FONT.is_file() and LIST.is_file()):
        raise SystemExit(
            f"{FONT} or {LIST} is missing: install the Debian packages fonts-noto-color-emoji and unicode-data"
        )
    font = TTFont(FONT, lazy=True)
    glyph_of, ligatures, pictures = font.getBestCmap(), _ligatures(font), font["CBDT"].strikeData[0]
    images: list[np.ndarray] = []
    labels: list[int] = []
    groups: list[str] = []
    bases: list[str] = []
    for code_points, group, name in _listed():
        glyphs = [glyph_of[code] for code in code_points if code in glyph_of]
        glyph = glyphs[0] if len(glyphs) == 1 else ligatures.get(tuple(glyphs))
        if glyph is None or glyph not in pictures:
            continue  # a flag made of parts
        groups += [group] if group not in groups else []
        base = re.sub(r"(: |, )[\w-]+ skin tone.*", "", name)
        bases += [base] if base not in bases[-1:] else []
        if ((len(bases) - 1) % HELD_OUT == 0) == (split == "test"):
            images.append(_picture(pictures[glyph].imageData))
            labels.append(groups.index(group))
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return functional.interpolate(pixels, (side, side), mode="area"), torch.tensor(labels)


def _listed() -> Iterator[tuple[list[int], str, str]]:
    """Code points, group and name of each emoji of the list."""
    group = ""
    for line in LIST.read_text(encoding="utf-8").splitlines():
        if line.startswith("# group: "):
            group = line.removeprefix("# group: ")
        found = re.match(r"([0-9A-F ]+?) +; fully-qualified +# \S+ E[\d.]+ (.+)", line)
        if found:
            yield [int(code, 16) for code in found[1].split()], group, found[2]


def _ligatures(font: Any) -> dict[tuple[str, ...], str]:
    """The glyph of each sequence of glyphs."""
    lookups = font["GSUB"].table.LookupList.Lookup
    tables = [table.ligatures for lookup in lookups if lookup.LookupType == 4 for table in lookup.SubTable]
    return {
        (first, *ligature.Component): ligature.LigGlyph
        for table in tables
        for first, found in table.items()
        for ligature in found
    }


def _picture(png: bytes) -> np.ndarray:
    """A bitmap of the font in the middle of a white square, `[SIDE, SIDE, 3]`."""
    drawn = Image.open(io.BytesIO(png)).convert("RGBA")
    square = Image.new("RGBA", (max(drawn.size), max(drawn.size)), "white")
    square.alpha_composite(drawn, tuple((max(drawn.size) - length) // 2 for length in drawn.size))
    return np.asarray(square.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX))
