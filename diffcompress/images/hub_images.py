"""Images of a data set on the Hub: the first of them, fetched once into a folder like the user's own.

The folder lies below HF_HOME, named after the commit, so the same data come back without a network.
"""

from __future__ import annotations

import functools
import json
import re
import zlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from diffcompress.errors import AccessError, UsageError
from diffcompress.images import columns as naming
from diffcompress.images.columns import Columns
from diffcompress.images.hub_rows import SPLIT, open_rows, refusals
from diffcompress.records.run_files import damaged, kept, read_json, write_atomically, write_checked, write_text
from diffcompress.runtime import Progress, StopRequest
from diffcompress.sources import hub, hub_errors

_RECORD = "record.json"
_TIMEOUT = 20.0


@dataclass(frozen=True)
class HubImages:
    """The first images of a data set, in `folder` with `metadata.jsonl` (file_name; label, text: null for none).

    all_columns: names of what the data set has; complete: it has no more images; skipped: rows without an image;
    checksums: of each file, by its name; notes: for the user.
    """

    id: str
    commit: str
    folder: Path
    subset: str
    split: str
    columns: Columns
    all_columns: list[str]
    num_images: int
    complete: bool
    skipped: int
    checksums: dict[str, str]
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.id}@{self.commit}"

    def check(self, num_classes: int | None, *, needs_text: bool) -> None:
        """Raise UsageError where a teacher of `num_classes`, or of text, does not find its conditions."""
        has = f"its columns are {', '.join(self.all_columns)}"
        if needs_text:
            if self.columns.text is None:
                raise UsageError(
                    f"'{self.id}' has no captions ({has}), and the teacher is text-conditional",
                    f"name a data set with a column {' or '.join(naming.TEXTS[:2])}, or leave --data out",
                )
        elif num_classes is not None:
            if self.columns.label is None:
                raise UsageError(
                    f"'{self.id}' has no class labels ({has}), and the teacher is class-conditional",
                    "name a data set with class folders or an integer column label, or leave --data out",
                )
            if len(self.columns.classes or ()) > num_classes:
                raise UsageError(
                    f"'{self.id}' has {len(self.columns.classes or ())} classes, the teacher has {num_classes}",
                    "name the data set that the teacher was trained on, or leave --data out",
                )


def is_id(text: str) -> bool:
    """Whether `text` is nothing that lies here, and reads owner/name or owner/name@revision."""
    return not Path(text).expanduser().exists() and hub.REPOSITORY_ID.fullmatch(text.partition("@")[0]) is not None


def pinned(data: str | None) -> str | None:
    """A data set's id with the commit that it stands for now; anything else as it is. Raises AccessError."""
    if data is None or not is_id(data):
        return data
    name, commit, _ = _resolved(data)
    return f"{name}@{commit}"


def fetch(data: str, limit: int, progress: Progress, stop: StopRequest | None = None) -> HubImages:
    """The first `limit` images of a data set (more, if more were asked for before), downloaded unless they are here.

    Raises AccessError when the Hub refuses, or offline when they are not in the cache; UsageError for what is no data
    set of images; RunStopped or RunInterrupted when `stop` is set, or the disk full.
    """
    from huggingface_hub.utils import WeakFileLock

    name, commit, notes = _resolved(data)
    folder = _home(name) / commit
    folder.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(folder.with_suffix(".lock")):  # of several processes one fetches
        found = kept(folder / _RECORD, _recorded, progress.warn)
        if found is None or not (found.complete or found.num_images >= limit):
            if hub.is_offline():
                raise _not_cached(f"{limit} images of '{name}' are")
            write_atomically(folder, functools.partial(_download, name, commit, limit, progress, stop))
            found = _recorded(folder / _RECORD)
    return replace(found, notes=(*notes, *_told(found)))


def _download(name: str, commit: str, limit: int, progress: Progress, stop: StopRequest | None, folder: Path) -> None:
    """Fill `folder` with the first `limit` images and their record."""
    folder.mkdir()
    lines: list[str] = []
    skipped = 0
    with refusals(name, commit):
        rows = open_rows(name, commit)
        for row in rows:
            if row.content is None:
                skipped += 1
                continue
            file = f"{len(lines):06d}.png"  # whatever the kind: who reads it looks at the content
            (folder / file).write_bytes(row.content)
            told = {"file_name": file, "label": row.label, "text": row.text}
            lines.append(json.dumps(told))
            progress.update("data set", len(lines), limit)
            if stop is not None:
                stop.raise_if_set()
            if len(lines) == limit:
                break
    if not lines:
        raise UsageError(f"split '{rows.split}' of '{name}' holds no image", "name another data set")
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    record = HubImages(
        name,
        commit,
        folder,
        rows.subset,
        rows.split,
        rows.columns,
        rows.all_columns,
        len(lines),
        complete=len(lines) < limit,
        skipped=skipped,
        checksums={file.name: _checksum(file) for file in sorted(folder.iterdir())},
    )
    write_checked(folder / _RECORD, {k: v for k, v in asdict(record).items() if k not in ("folder", "notes")})


def _recorded(file: Path) -> HubImages:
    """What `_download` wrote down, with every file as it was then; raises DamagedError."""
    values = read_json(file, kind=dict)
    try:
        found = HubImages(**{**values, "folder": file.parent, "columns": Columns(**values["columns"])})
        told = found.checksums.items()
    except (TypeError, KeyError, AttributeError) as error:
        raise damaged(file, str(error)) from error
    for name, checksum in told:
        beside = file.with_name(name)
        if not beside.is_file() or _checksum(beside) != checksum:
            raise damaged(file, f"{name} beside it is not what was fetched")
    return found


def _checksum(file: Path) -> str:
    return f"crc32 {zlib.crc32(file.read_bytes()):08x}"


def _told(found: HubImages) -> list[str]:
    used = {"images": found.columns.image, "classes": found.columns.label, "captions": found.columns.text}
    read = ", ".join(f"{what} from column '{column}'" for what, column in used.items() if column)
    notes = [f"'{found.id}' is taken at commit {found.commit}, split '{found.split}' of '{found.subset}': {read}"]
    if found.split != SPLIT:
        notes.append(f"'{found.id}' has no split '{SPLIT}', so '{found.split}' is taken")
    if found.columns.stated:
        notes.append(f"the classes of '{found.id}' are named by integers, which are taken as their labels")
    if found.skipped:
        notes.append(f"{found.skipped} rows of '{found.id}' hold no image and are left out")
    return notes


def _resolved(data: str) -> tuple[str, str, tuple[str, ...]]:
    """Name, commit and notes of an id: from the Hub or, where it cannot be asked, as it was the last time."""
    name, _, revision = data.partition("@")
    reference = _home(name) / "refs" / (revision or "main").replace("/", "--")
    cached = reference.read_text(encoding="utf-8", errors="replace") if reference.is_file() else None
    if cached is not None and re.fullmatch("[0-9a-f]+", cached) is None:
        cached = None  # damaged
    if cached is None and revision and (_home(name) / revision / _RECORD).is_file():
        cached = revision
    if hub.is_offline():
        if cached is None:
            raise _not_cached(f"'{data}' is")
        return name, cached, ()
    from huggingface_hub import HfApi

    try:
        with hub_errors.told(f"datasets/{name}", revision or None):
            ask = functools.partial(HfApi().dataset_info, name, revision=revision or None, timeout=_TIMEOUT)
            info = hub.patiently(ask)
    except hub_errors.UnreachableError as error:
        if cached is None:
            raise
        return name, cached, (f"{error.message}; the cached images of commit {cached[:12]} are used",)
    write_text(reference, str(info.sha))
    return name, str(info.sha), (f"'{name}' has moved to '{info.id}'",) if info.id != name else ()


def _home(name: str) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HOME) / "diffcompress" / f"datasets--{name.replace('/', '--')}"


def _not_cached(what: str) -> AccessError:
    return AccessError(
        f"{what} not in the local cache, and the network is not to be used (--offline or HF_HUB_OFFLINE)",
        "run once without --offline, or name a folder",
    )
