"""The licence of a student follows from its teacher's; it is never guessed."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from diffcompress.errors import UsageError
from diffcompress.teacher.linking import is_own
from diffcompress.teacher.reference import DEMO_FOLDER, DENOISERS, Reference

UNKNOWN = "unknown"  # which the Hub also takes for a licence
STATED = "whoever made the student (--license)"
_ID = re.compile(r"[a-z0-9][a-z0-9.-]*")
_TEXTS = ("LICEN[CS]E*", "NOTICE*")


@dataclass(frozen=True)
class Licence:
    """id: as the Hub spells it, "unknown" when nobody stated one; source: who stated it, in words."""

    id: str
    source: str
    name: str | None = None
    link: str | None = None

    @property
    def is_known(self) -> bool:
        return self.id != UNKNOWN

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def licence_of(reference: Reference, stated: str | None = None) -> Licence:
    """From the teacher's model card; `stated` (--license) counts only where the teacher's is unknown."""
    folder = _folder(reference)
    front = front_matter(folder / "README.md")
    if (id := _stated_in(front)) is not None:
        return Licence(id, "the teacher's model card", front.get("license_name"), front.get("license_link"))
    if is_demo(reference):
        return Licence("apache-2.0", "diffcompress, whose demo teacher this is")
    if stated:
        return stated_by_user(stated)
    return Licence(UNKNOWN, "nobody: the teacher's folder has no model card with a licence")


def stated_by_user(id: str) -> Licence:
    """Raises UsageError for what cannot be a licence id of the Hub."""
    if _ID.fullmatch(id) is None:
        raise UsageError(f"--license '{id}' is not a licence id", "use the Hub's spelling, such as apache-2.0 or mit")
    return Licence(id, STATED)


def licence_files(reference: Reference) -> list[Path]:
    """Licence texts of the teacher's folder, to be copied as they are."""
    folder = _folder(reference)
    return [file for name in _TEXTS for file in sorted(folder.glob(name)) if is_own(file, folder)]


def is_demo(reference: Reference) -> bool:
    return reference.pipeline is not None and DEMO_FOLDER in reference.pipeline.parents


def front_matter(file: Path) -> dict[str, Any]:
    """The YAML block at the head of a model card; empty when there is no card, no block or no valid YAML in it."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return {}
    block = re.match(r"\s*---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
    try:
        value = yaml.safe_load(block.group(1)) if block else None
    except yaml.YAMLError:
        return {}
    return value if isinstance(value, dict) else {}


def _stated_in(front: dict[str, Any]) -> str | None:
    """A card's licence; None also where it says that nobody stated one, as the cards of our students do."""
    stated = front.get("license")
    if isinstance(stated, list) and len(stated) == 1:
        stated = stated[0]
    unsaid = stated in ("", UNKNOWN) or (stated == "other" and front.get("license_name") == UNKNOWN)
    return stated if isinstance(stated, str) and not unsaid else None


def _folder(reference: Reference) -> Path:
    """Where card and licence lie: around a denoiser in its subfolder, too."""
    if reference.pipeline is not None:
        return reference.pipeline
    place = reference.denoiser
    is_part = place.is_dir() and place.name in DENOISERS and not (place / "README.md").is_file()
    return place.parent if is_part else place
