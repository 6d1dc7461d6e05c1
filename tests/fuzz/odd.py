"""Values, texts and bytes that nobody expects."""

from __future__ import annotations

import json
import os
from pathlib import Path
from random import Random
from typing import Any

TEXTS = (
    "", " ", "\n", "\t", "a\nb", "\x00", "\x1b[31mred\x1b[0m", "\ud800", "ä", "a\u0308", "\u202etxt", "\u2028",
    "..", "../..", "/", "/etc/passwd", "~", "-", "--help", "$(id)", "`id`", "%s%n", "{0}", "{{7*7}}", "<script>",
    "nan", "inf", "true", "null", "None", "1e309", "0x10", "1_000", "١٢", "😀", "x" * 300, "y" * 5000, "a/b/c/d",
    "con", "a:b", "a@b", "owner/name", "demo", "demo:", "demo:x", "https://huggingface.co/a/b", "s3://a/b", "*.json",
)  # fmt: skip
NUMBERS = (
    0, 1, -1, 2, 3, 7, 10**3, 10**6, 10**9, 2**31, 2**63, 10**30, -(10**30), 10**308, 0.5, -0.5, 1e-308, 1e308,
    0.1, 4.0,
)  # fmt: skip


def value(random: Random, depth: int = 0) -> Any:
    """Something that JSON can hold."""
    kind = random.randrange(8)
    if kind == 0:
        return random.choice((None, True, False, float("nan"), float("inf")))
    if kind <= 2:
        return random.choice(NUMBERS)
    if kind <= 4 or depth > 3:
        return random.choice(TEXTS)
    if kind == 5:
        return [value(random, depth + 1) for _ in range(random.randrange(4))]
    if kind == 6:
        return {random.choice(TEXTS): value(random, depth + 1) for _ in range(random.randrange(3))}
    return [[random.choice(NUMBERS)] * random.randrange(1, 4)] * random.randrange(1, 3)


def mutated(random: Random, data: Any) -> Any:
    """`data` with a few values of some depth changed, removed, added or swapped."""
    data = json.loads(json.dumps(data))
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        node = data
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            if not keys:
                break
            key = random.choice(keys)
            if isinstance(node[key], (dict, list)) and node[key] and random.random() < 0.6:
                node = node[key]
                continue
            _change(random, node, key)
            break
    return data


def _change(random: Random, node: Any, key: Any) -> None:
    kind = random.randrange(8)
    if kind == 0:
        del node[key]
    elif kind == 1 and isinstance(node, dict):
        node[random.choice(TEXTS)] = value(random)
    elif kind == 2:
        node[key] = [node[key]]
    elif kind == 3:
        node[key] = str(node[key])
    elif kind == 4 and isinstance(node[key], (int, float)):
        node[key] = node[key] * random.choice((-1, 0, 2, 3, 10**6, 0.5))
    else:
        node[key] = value(random)


def text_of(random: Random, data: Any) -> bytes:
    """JSON of `data`, sometimes not quite."""
    whole = json.dumps(data)
    kind = random.randrange(14)
    if kind == 0:
        return whole[: random.randrange(len(whole))].encode()
    if kind == 1:
        return b"\xef\xbb\xbf" + whole.encode()
    if kind == 2:
        return whole.encode("utf-16")
    if kind == 3:
        return whole.replace(" ", random.choice(("\x00", "\xa0", "\n\n", "//")), 3).encode()
    if kind == 4:
        return b"[" * random.choice((100, 5000, 200_000))
    if kind == 5:
        return (whole[:-1] + ', "a": ' + "9" * 5000 + "}").encode()
    if kind == 6:
        return random.choice((b"", b"null", b"[1]", b"5", b'"x"', b"{}", b"\xff\xfe\x00", random.randbytes(50)))
    return whole.encode()


def damage(random: Random, file: Path) -> str:
    """Leave something else in place of `file`; returns what was done."""
    content = file.read_bytes()
    kind = random.randrange(12)
    if kind == 0:
        file.write_bytes(b"")
        return "empty"
    if kind == 1:
        file.write_bytes(content[: random.randrange(len(content) or 1)])
        return "cut"
    if kind == 2:
        file.write_bytes(random.randbytes(16) + content[16:])
        return "garbled"
    if kind == 3:
        file.write_bytes(random.choice((b"[1]", b"{}", b"null", b"5", b"[" * 100_000)))
        return "other JSON"
    if kind in (4, 5):
        file.unlink()
        file.mkdir()
        if kind == 5:
            (file / "mine.txt").touch()
        return "a folder"
    if kind == 6:
        file.unlink()
        os.mkfifo(file)
        return "a pipe"
    if kind == 7:
        file.unlink()
        file.symlink_to(random.choice(("/nowhere", "/etc/passwd", "/dev/zero", ".", str(file))))
        return "a link"
    if kind == 8:
        file.unlink()
        return "gone"
    if kind == 9 and file.suffix == ".json":
        return _mutate_json(random, file)
    if content:
        bits = bytearray(content)
        for _ in range(random.choice((1, 1, 8))):
            bits[random.randrange(len(bits))] ^= 1 << random.randrange(8)
        file.write_bytes(bytes(bits))
    return "flipped bits"


def _mutate_json(random: Random, file: Path) -> str:
    file.write_bytes(text_of(random, mutated(random, json.loads(file.read_text()))))
    return "other values"
