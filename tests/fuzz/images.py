"""Images of the user's own: broken ones, bombs, pipes and loops; labels and captions of every kind."""

from __future__ import annotations

import json
import os
import struct
import zlib
from pathlib import Path
from random import Random

from PIL import Image

from tests.fuzz import odd
from tests.fuzz.place import Case, Place

MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F", "YCbCr", "HSV")


def make(random: Random, place: Place) -> Case:
    folder = place.inputs / "images"
    folder.mkdir()
    kind = random.choice(("ddpm", "classes", "classes", "sd", "sd"))
    names = [_picture(random, folder, number) for number in range(random.choice((0, 1, 4, 12)))]
    if random.random() < (0.3 if kind == "ddpm" else 0.8):
        _metadata(random, folder, names, kind)
    for _ in range(random.choice((0, 0, 1, 2))):
        _stranger(random, folder, place)
    return place.shrink(place.take(kind), "--data", str(folder))


def _picture(random: Random, folder: Path, number: int) -> str:
    below = random.choice(("", "", "", "0", "1", "cat", "dog", ".hidden", "__MACOSX", "a b"))
    suffix = random.choice((".png", ".png", ".jpg", ".webp", ".tif", ".bmp", ".gif", ".PNG", ".jfif", ".ppm"))
    (folder / below).mkdir(exist_ok=True)
    file = folder / below / f"{number}{suffix}"
    mode = random.choice(MODES)
    size = random.choice(((8, 8), (8, 8), (1, 1), (9, 5), (300, 2)))
    try:
        Image.new(mode, size, None if mode in ("1", "P") else 0).save(file)
    except (OSError, ValueError, KeyError):
        Image.new("RGB", size, (200, 9, number)).save(file, format="PNG")
    if random.random() < 0.2:
        odd.damage(random, file)
    elif random.random() < 0.05:
        file.write_bytes(_bomb(random))
    return str(file.relative_to(folder))


def _bomb(random: Random) -> bytes:
    """A PNG of a few bytes that says it is huge, or is."""
    side = random.choice((20_000, 60_000, 2**31 - 1))

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(10**6))) + chunk(b"IEND", b"")


def _metadata(random: Random, folder: Path, names: list[str], kind: str) -> None:
    file, lines = folder / "metadata.jsonl", []
    for name in names:
        row = {
            "file_name": random.choice(
                (name, name, name, f"./{name}", name.replace("/", "\\"), "gone.png", odd.value(random))
            )
        }
        right = random.randrange(3) if kind == "classes" else random.choice(("a cat", ["a", "b"], "ab"))
        wrong = random.choice((odd.value(random), True, "2", 2.0, -1, 10**9, "\ud800"))
        row["label" if kind == "classes" else "text"] = right if random.random() < 0.7 else wrong
        lines.append(json.dumps(row))
    if random.random() < 0.2:
        lines.append(odd.text_of(random, {"file_name": "x"}).decode("latin-1"))
    file.write_text("\n".join(lines))
    if random.random() < 0.15:
        odd.damage(random, file)


def _stranger(random: Random, folder: Path, place: Place) -> None:
    kind = random.randrange(5)
    name = folder / f"s{random.randrange(99)}{random.choice(('.png', '.txt', '', '.heic'))}"
    if name.exists() or name.is_symlink():
        return
    if kind == 0:
        os.mkfifo(name)
    elif kind == 1:
        name.symlink_to(random.choice((folder, "/nowhere", "/dev/zero", place.outside, name.name)))
    elif kind == 2:
        name.write_bytes(random.randbytes(20))
    elif kind == 3:
        (folder / os.fsdecode(b"\xff.png")).write_bytes(b"x")
    else:
        name.mkdir()
