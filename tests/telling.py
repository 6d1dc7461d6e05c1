"""What a job tells its user, kept for tests to read."""

from __future__ import annotations

from diffcompress.runtime import Progress


class Told(Progress):
    """Keeps what it was told and warned of."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)
