"""The licence of a student follows from its teacher's; it is never guessed."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from diffcompress.errors import UsageError
from diffcompress.sources import teacher_card
from diffcompress.sources.linking import is_own
from diffcompress.sources.model_index import DENOISERS
from diffcompress.sources.reference import DEMO_FOLDER, Reference

UNKNOWN = "unknown"  # which the Hub also takes for a licence
STATED = "whoever made the student (--license)"
CARD = "the teacher's model card"
NOBODY = "nobody: the teacher's folder has no model card with a licence"
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

    @property
    def advice(self) -> str:
        """What makes an unknown licence known."""
        if not self.source.startswith(CARD):
            return "find out what the teacher's licence allows and say it with --license"
        return "name one licence at the head of the teacher's README.md ('license: ID' between two lines of ---)"

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def licence_of(reference: Reference, stated: str | None = None) -> Licence:
    """The licence of a teacher, from its model card; `stated` (--license) counts only where that says nothing of one.

    A card that says something which cannot be taken over, such as two licences, makes the licence unknown, and stands.
    """
    said = teacher_card.read(_folder(reference) / "README.md")
    # A licence of that name is nobody's statement: the cards of our own students say so.
    if said is not None and UNKNOWN not in (said.id, said.name if said.id == "other" else None):
        if said.id is None:
            return Licence(UNKNOWN, f"{CARD}: {said.why}")
        return Licence(said.id, "the teacher's model card", said.name, said.link)
    if is_demo(reference):
        return Licence("apache-2.0", "diffcompress, whose demo teacher this is")
    return stated_by_user(stated) if stated else Licence(UNKNOWN, NOBODY)


def stated_by_user(id: str) -> Licence:
    """The licence that the user states; raises UsageError for what cannot be a licence id of the Hub."""
    if _ID.fullmatch(id) is None:
        raise UsageError(f"--license '{id}' is not a licence id", "use the Hub's spelling, such as apache-2.0 or mit")
    return Licence(id, STATED)


def unused(licence: Licence, stated: str) -> str:
    """What to say of a `stated` licence that does not count, as `licence` does."""
    told = f"{licence.source} says {licence.id}" if licence.is_known else licence.source
    return f"--license {stated} is not used: {told}"


def licence_files(reference: Reference) -> list[Path]:
    """Licence texts of the teacher's folder, to be copied as they are."""
    folder = _folder(reference)
    return [file for name in _TEXTS for file in sorted(folder.glob(name)) if is_own(file, folder)]


def is_demo(reference: Reference) -> bool:
    return reference.pipeline is not None and DEMO_FOLDER in reference.pipeline.parents


def _folder(reference: Reference) -> Path:
    """Where card and licence lie: around a denoiser in its subfolder, too."""
    if reference.pipeline is not None:
        return reference.pipeline
    place = reference.denoiser
    is_part = place.is_dir() and place.name in DENOISERS and not (place / "README.md").is_file()
    return place.parent if is_part else place
