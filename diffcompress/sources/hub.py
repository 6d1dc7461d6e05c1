"""Models on the Hub: which commit, which files of it, and a sentence for everything that can be in the way.

All requests are huggingface_hub's own; they go to HF_ENDPOINT and into its cache (HF_HOME).
"""

from __future__ import annotations

import contextlib
import functools
import glob
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from diffcompress.errors import AccessError, UsageError
from diffcompress.records import units
from diffcompress.records.fingerprints import of_model_file
from diffcompress.runtime import Progress
from diffcompress.sources import hub_errors
from diffcompress.sources.hub_names import REPOSITORY_ID as REPOSITORY_ID
from diffcompress.sources.variants import choose, choose_files

T = TypeVar("T")
# Everything that a plan reads; a card and a licence are small and follow the student.
_CONFIGS = [
    "model_index.json", "config.json", "*/config.json", "scheduler/*", "scheduler_config.json", "README.md",
    "LICEN[CS]E*", "NOTICE*",
]  # fmt: skip
GO_ONLINE = "run once with a network and without --offline, or name a folder"
_TIMEOUT = 20.0
_WAITS = (1.0, 2.0, 4.0)
_LONGEST_WAIT = 60.0


@dataclass(frozen=True)
class RemoteFile:
    """size in bytes; sha256 where the Hub states it, which is for all large files."""

    size: int
    sha256: str | None


@dataclass(frozen=True)
class Header:
    """The header of a safetensors file there, asked for tensors as the file itself is once it is here."""

    tensors: Mapping[str, Any]

    def keys(self) -> Iterable[str]:
        return self.tensors.keys()

    def get_slice(self, name: str) -> Header:
        return Header({"": self.tensors[name]})

    def get_shape(self) -> list[int]:
        return list(self.tensors[""].shape)

    def get_dtype(self) -> str:
        return str(self.tensors[""].dtype)


@dataclass(frozen=True)
class Repository:
    """One commit of a model repository and the folder that it is downloaded to, part by part.

    id: the name it has now; asked: the name it was asked for by, under which the cache keeps it; files: all of them by
    path, None when the Hub could not be asked; notes: for the user.
    """

    id: str
    asked: str
    commit: str
    folder: Path
    files: Mapping[str, RemoteFile] | None
    notes: tuple[str, ...] = ()

    def has_weights(self, part: str) -> bool:
        """Whether the weights of a part (a subfolder, "" for the root) are here already."""
        chosen = self.weights(part)
        return bool(chosen) and all((self.folder / part / name).is_file() for name in chosen)

    def weights(self, part: str) -> list[str]:
        """Names of the weight files of a part; those in the cache, if they are whole, when the Hub cannot be asked."""
        try:
            return choose(self.names(part), f"{self.id}/{part}")
        except UsageError:
            if self.files is None:
                return []
            raise

    def num_bytes(self, parts: Iterable[str]) -> int | None:
        """What `fetch` would bring, whether here or not; None when it cannot be known."""
        if self.files is None:
            return None
        return sum(self.files[path].size for path in self._paths(parts))

    def headers(self, part: str) -> dict[str, Header]:
        """Headers of the safetensors files with the weights of a part, by path; nothing else of them is downloaded.

        Raises UsageError for a file that is damaged there already.
        """
        found: dict[str, Header] = {}
        for name in self.weights(part) if self.files is not None else ():
            path = f"{part}/{name}".lstrip("/")
            if name.endswith(".safetensors"):
                with hub_errors.told(self.id, self.commit):
                    found[path] = Header(patiently(functools.partial(self._header, path)).tensors)
        return found

    def fetch(self, parts: Iterable[str], progress: Progress | None = None) -> None:
        """Download parts whole: one variant of their weights, and all that is small.

        Raises AccessError when the Hub refuses or breaks off, or offline when something is not in the cache.
        """
        parts = list(parts)
        if self.files is None:
            for part in parts:
                self._require_cached(part)
            return
        absent = [path for path in self._paths(parts) if not (self.folder / path).exists()]
        if not absent:
            return
        total = sum(self.files[path].size for path in absent)
        if progress is not None and total > 10**7:
            progress.note(f"downloading {units.size(total)} of '{self.id}'")
        with hub_errors.told(self.id, self.commit):
            patiently(lambda: _snapshot(self.asked, self.commit, [glob.escape(path) for path in absent]))
        for path in absent:
            self._verify(path)

    def _header(self, path: str) -> Any:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import SafetensorsParsingError

        try:
            return HfApi().parse_safetensors_file_metadata(self.asked, path, revision=self.commit)
        except SafetensorsParsingError as error:
            raise UsageError(
                f"'{path}' of '{self.id}' cannot be read as safetensors: it is damaged on the Hub",
                "take another revision, with @, or another teacher",
            ) from error

    def names(self, part: str) -> list[str]:
        """The files that lie directly in a part; in the cache when the Hub cannot be asked."""
        if self.files is None:
            folder = self.folder / part
            return [f.name for f in folder.iterdir()] if folder.is_dir() else []
        prefix = f"{part}/" if part else ""
        inside = [path[len(prefix) :] for path in self.files if path.startswith(prefix)]
        return [name for name in inside if "/" not in name]

    def _paths(self, parts: Iterable[str]) -> list[str]:
        return [f"{p}/{name}".lstrip("/") for p in parts for name in choose_files(self.names(p), f"{self.id}/{p}")]

    def _require_cached(self, part: str) -> None:
        names = self.names(part)
        # A model has a config.json and needs weights; a tokenizer or a scheduler comes whole.
        if not names or ("config.json" in names and not self.weights(part)):
            raise AccessError(
                f"{part or 'the model'} of '{self.id}' is not in the local cache, and the Hub cannot be asked",
                GO_ONLINE,
            )

    def _verify(self, path: str) -> None:
        """A damaged file must not stay where the next run would take it for good."""
        file, expected = self.folder / path, (self.files or {})[path]
        if file.stat().st_size == expected.size and expected.sha256 in (None, of_model_file(file)):
            return
        file.resolve().unlink(missing_ok=True)
        file.unlink(missing_ok=True)
        raise AccessError(
            f"the download of '{path}' from '{self.id}' arrived damaged, and was thrown away", "run the command again"
        )


def is_offline() -> bool:
    """--offline sets HF_HUB_OFFLINE; huggingface_hub itself looks at it only when it is first imported."""
    from huggingface_hub import constants

    return os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on") or constants.HF_HUB_OFFLINE


def find(repository: str, revision: str | None = None) -> Repository:
    """`repository` at `revision` (branch, tag or commit; None: the main branch), with its configs downloaded.

    Raises AccessError for everything that keeps it from being read. Without a network the cached copy does, if any.
    """
    from huggingface_hub import HfApi

    if is_offline():
        return _cached(repository, revision)
    try:
        with hub_errors.told(repository, revision):
            ask = functools.partial(HfApi().model_info, repository, files_metadata=True, timeout=_TIMEOUT)
            info = patiently(lambda: ask(revision=revision))
            folder = patiently(lambda: _snapshot(repository, revision, _CONFIGS))
            if folder.name != info.sha:  # the branch moved between the two requests
                info = patiently(lambda: ask(revision=folder.name))
    except hub_errors.UnreachableError as error:
        with contextlib.suppress(AccessError):
            found = _cached(repository, revision)
            note = f"{error.message}; the cached copy at commit {found.commit[:12]} is used"
            return replace(found, notes=(note,))
        raise
    files = {
        sibling.rfilename: RemoteFile(sibling.size or 0, sibling.lfs.sha256 if sibling.lfs else None)
        for sibling in info.siblings or ()
    }
    moved = (f"'{repository}' has moved to '{info.id}'",) if info.id != repository else ()
    return Repository(info.id, repository, folder.name, folder, files, moved)


def _cached(repository: str, revision: str | None) -> Repository:
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = _snapshot(repository, revision, ["model_index.json", "config.json"], local=True)
    except LocalEntryNotFoundError as error:
        wanted = f"'{repository}'" if revision is None else f"revision '{revision}' of '{repository}'"
        raise AccessError(
            f"{wanted} is not in the local cache, and the network is not to be used (--offline or HF_HUB_OFFLINE)",
            "run once without --offline, or name a folder",
        ) from error
    return Repository(repository, repository, folder.name, folder, None)


def _snapshot(repository: str, revision: str | None, patterns: list[str], *, local: bool = False) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns, local_files_only=local))


def patiently(
    request: Callable[[], T],
    *,
    waits: Sequence[float] | None = None,
    longest: float = _LONGEST_WAIT,
    reconnect: bool = False,
) -> T:
    """`request()`, again after a while when the Hub is overloaded (429), failing (5xx) or, to `reconnect`, not reached.

    waits: seconds before each further try; longest: a longer wait that the Hub asks for is not waited for. Downloads
    are retried by the client itself; the requests before them are not.
    """
    for wait in (*(_WAITS if waits is None else waits), None):
        try:
            return request()
        except Exception as error:
            seconds = hub_errors.retry_after(error, default=wait)
            if reconnect and seconds is None and hub_errors.is_unreachable(error):
                seconds = wait
            if wait is None or seconds is None or seconds > longest:
                raise
            time.sleep(seconds)
    raise AssertionError("unreachable")
