"""What a run was asked for, in `run.json`: nothing else tells it, so a copy lies beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from diffcompress.errors import DamagedError
from diffcompress.records import layout, shapes
from diffcompress.records.run_files import damaged, kept, read_json, write_checked

_ADVICE = "put it back from a backup, or choose another --output: --overwrite would delete the run that is there"


class Marker:
    """`run.json` of the run folder `run`, and its copy: as long as one is whole, the run is known."""

    def __init__(self, run: Path) -> None:
        self.file, self.copy = run / layout.RUN, run / layout.RUN_COPY

    @property
    def is_whole(self) -> bool:
        """Raises DamagedError where `run.json` itself cannot be read."""
        try:
            return bool(_read(self.file))
        except OSError:
            return False

    def read(self) -> dict[str, Any] | None:
        """What the run was asked for; None where there is no run. Raises DamagedError where neither file is whole."""
        found = None
        for file in (self.file, self.copy):
            try:
                return _read(file)
            except DamagedError as error:
                found = found or error
            except PermissionError as error:
                found = found or damaged(file, error.strerror or "")
            except OSError:
                continue
        if found is not None:
            raise DamagedError(found.message, _ADVICE, found.step) from found
        return None

    def write(self, identity: Mapping[str, Any]) -> None:
        """The marker first: where it stands, the folder is a run's."""
        for file in (self.file, self.copy):
            write_checked(file, identity)

    def mend(self, warn: Callable[[str], None]) -> None:
        """Write either file again from the other one, and tell of `run.json`; one of them is whole."""
        asked = self.read()
        if asked is None:
            return
        for file, tell in ((self.file, warn), (self.copy, unheard)):
            told: list[str] = []
            if kept(file, _read, told.append) is None:
                tell(*(told or [f"{file} is missing and was written again from its copy"]))
                write_checked(file, asked)


def _read(file: Path) -> dict[str, Any]:
    return dict(read_json(file, "teacher", kind=shapes.Asked))


def unheard(_text: str) -> None:
    """The `warn` of whoever has nobody to tell."""
