"""Which files below a folder are its images, by their names, and what is passed over."""

from __future__ import annotations

import mimetypes
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from diffcompress.errors import UsageError

METADATA = "metadata.jsonl"
_USUAL = {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
SUFFIXES = frozenset(_USUAL | {".avif", ".jp2", ".pbm", ".pgm", ".ppm", ".pnm", ".tga"})
# What other programs leave beside images: old copies, thumbnails, and the resource forks of archives made on a Mac.
_OTHERS = ("__MACOSX", "@eaDir")
_MOST_KINDS = 5


def image_files(folder: Path) -> list[Path]:
    """Every image below `folder`, in order; raises UsageError where there is no such folder."""
    return sorted(path for path in _walk(_required(folder)) if path.suffix.lower() in SUFFIXES)


def passed_over(folder: Path) -> tuple[list[str], list[str]]:
    """Warnings and notes on the files below `folder` that are not taken: images of other kinds, and the rest."""
    others = [p for p in _walk(folder) if p.suffix.lower() not in SUFFIXES and p.name != METADATA]
    pictures = [path for path in others if (mimetypes.guess_type(path.name)[0] or "").startswith("image/")]
    rest = [path for path in others if path not in set(pictures)]
    warnings = [f"{_kinds(pictures)} in '{folder}' are images of a kind that is not read"] if pictures else []
    return warnings, [f"{_kinds(rest)} in '{folder}' are no images by their names and are passed over"] if rest else []


def name_below(folder: Path, path: Path) -> str:
    """The name that `metadata.jsonl` has for the file `path` below `folder`."""
    return plain_name(path.relative_to(folder).as_posix())


def plain_name(text: str) -> str:
    """A file's name in one spelling: slashes, no leading "./", composed characters."""
    return unicodedata.normalize("NFC", PurePosixPath(text.replace("\\", "/")).as_posix())


def _required(folder: Path) -> Path:
    if not folder.is_dir():
        what = f"'{folder}' is a file, not a folder of images" if folder.is_file() else f"no image folder at '{folder}'"
        raise UsageError(what, "name a folder of images, or a data set on the Hub as owner/name")
    return folder


def _walk(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """All files below, through links to folders too, but for hidden ones."""
    here = folder.resolve()
    if here in above:  # a link back to where it lies
        return
    for path in folder.iterdir():
        if path.name.startswith(".") or path.name in _OTHERS:
            continue
        if path.is_dir():
            yield from _walk(path, (*above, here))
        else:
            yield path


def _kinds(files: Sequence[Path]) -> str:
    counts = Counter(path.suffix.lower() or path.name for path in files).most_common()
    told = [f"{count:,} {kind}" for kind, count in counts[:_MOST_KINDS]]
    return f"{len(files):,} files ({', '.join([*told, *(['...'] if len(counts) > _MOST_KINDS else [])])})"
