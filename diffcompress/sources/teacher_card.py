"""What the model card of a teacher says about its licence, also where it cannot be read whole."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffcompress.inputs import parse_yaml

# More of a card is not looked at; a front matter is a page.
_MOST_BYTES = 1 << 20
_FRONT = re.compile(r"\s*---[ \t]*\n(.*?)\n---[ \t]*(?:\n|$)", re.DOTALL)
# A line that states a licence, in whatever key: license, license_name, "Licence".
_LINE = re.compile(r"""^[ \t]*["']?(licen[cs]e\w*)["']?[ \t]*:[ \t]*(.*?)[ \t]*$""", re.IGNORECASE | re.MULTILINE)
_ID = re.compile(r"[\w.-]+")
_LONGEST_QUOTE = 60


@dataclass(frozen=True)
class Stated:
    """id: the licence, None where the card says something about one that cannot be taken over; then `why`, in words."""

    id: str | None
    name: str | None = None
    link: str | None = None
    why: str = ""


def read(file: Path) -> Stated | None:
    """None without a card, and for one that says nothing about a licence."""
    if not file.is_file():
        return Stated(None, why=f"{file.name} is no regular file") if file.exists() else None
    try:
        with file.open("rb") as stream:
            # Licences are ASCII: whatever else is broken in a card changes nothing about them.
            text = stream.read(_MOST_BYTES).decode("utf-8-sig", errors="replace").replace("\r\n", "\n")
    except OSError as error:
        return Stated(None, why=f"{file.name} cannot be read: {error.strerror}")
    block = _FRONT.match(text)
    return _of_front(block[1] if block else "") or _of_lines(text)


def _of_front(block: str) -> Stated | None:
    """The licence in the YAML at the head of a card; None where that names no single licence."""
    lines = [(line[1].lower(), line[2].strip("\"'")) for line in _LINE.finditer(block)]
    if [key for key, _ in lines].count("license") > 1:
        return None
    front = _parsed(block)
    if front is None:  # its lines tell, unless they are YAML beyond a word
        front = {key: value for key, value in lines if key != "license" or _ID.fullmatch(value)}
    id = front.get("license")
    if isinstance(id, list) and len(id) == 1:
        id = id[0]
    name, link = (str(front[key]) if front.get(key) else None for key in ("license_name", "license_link"))
    return Stated(id, name, link) if isinstance(id, str) and id else None


def _of_lines(text: str) -> Stated | None:
    said = next((line[0].strip() for line in _LINE.finditer(text) if line[2].strip("\"'")), None)
    if said is None:
        return None
    quoted = said if len(said) <= _LONGEST_QUOTE else f"{said[:_LONGEST_QUOTE]}..."
    return Stated(None, why=f"it says '{quoted}', which is no single licence at its head")


def _parsed(block: str) -> dict[str, Any] | None:
    """None where `block` is no YAML of a mapping."""
    try:
        value = parse_yaml(block)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
