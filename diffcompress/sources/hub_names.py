"""Names of repositories: as an id, as the address of a page on the Hub, as a folder of the Hub's cache."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from diffcompress.errors import UsageError

REPOSITORY_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_DATA_SET = re.compile(rf"{REPOSITORY_ID.pattern}@[0-9a-f]{{40}}")
_CACHED = re.compile(r"models--(?P<owner>.+?)--(?P<name>.+)")
_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")


def from_address(text: str) -> str | None:
    """owner/name or owner/name@revision of a pasted address; None for what is none.

    Raises UsageError for the address of anything but a model or its files' list.
    """
    split = urlsplit(text if "://" in text else f"https://{text}")
    if split.hostname not in _HOSTS:
        return None
    owner, name, kind, revision, *rest = [*(unquote(part) for part in split.path.strip("/").split("/")), *[""] * 4]
    if not REPOSITORY_ID.fullmatch(f"{owner}/{name}") or owner in ("datasets", "spaces") or kind not in ("", "tree"):
        raise UsageError(
            f"'{text}' is not the address of a model on the Hub",
            "name the model as owner/name, or a file that is here",
        )
    if any(rest):
        raise UsageError(f"'{text}' is the address of a folder inside a model", f"name the model: {owner}/{name}")
    return f"{owner}/{name}@{revision}" if revision not in ("", "main") else f"{owner}/{name}"


def snapshot_in(path: Path) -> Path:
    """The snapshot to take of a folder models--owner--name of the Hub's cache; any other folder as it is.

    Raises UsageError when there are several and none is the main branch's.
    """
    if _CACHED.fullmatch(path.name) is None or not (path / "snapshots").is_dir():
        return path
    found = sorted(entry for entry in (path / "snapshots").iterdir() if entry.is_dir())
    main = path / "refs" / "main"
    commit = main.read_text(encoding="utf-8", errors="replace").strip()[:40] if main.is_file() else ""
    for snapshot in found:
        if len(found) == 1 or snapshot.name == commit:
            return snapshot
    raise UsageError(
        f"{path} holds {len(found)} snapshots of a model, and does not say which one is its main branch",
        f"name one of them, such as {found[0]}" if found else "download the model again",
    )


def cached_name(snapshot: Path) -> str | None:
    """The model's name where `snapshot` lies in the Hub's cache."""
    whole = snapshot.resolve()
    match = _CACHED.fullmatch(whole.parent.parent.name) if whole.parent.name == "snapshots" else None
    return match["name"] if match else None


def public_name(path: str | None) -> str | None:
    """The last part of a path, as the rest is nobody's business; a data set's id with its commit as it is."""
    return path if path is None or _DATA_SET.fullmatch(path) else Path(path).name or path
