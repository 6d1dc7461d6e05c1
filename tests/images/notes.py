"""What a user is told on the way."""

from __future__ import annotations

from diffcompress.runtime import Progress


class Notes(Progress):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)
