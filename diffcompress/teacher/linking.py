"""Parts of a pipeline from one folder into another, without a second copy of large files where that is possible."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from diffcompress.errors import RunStopped
from diffcompress.teacher.variants import choose_files, plain_name

# Files larger than this are linked rather than copied.
LINKED_FROM = 10 << 20


def link_part(source: Path, target: Path) -> None:
    """A part of a pipeline into the new folder `target`: one variant of its weights, under their plain names.

    Raises UsageError when a shard is missing.
    """
    target.mkdir(parents=True)
    entries = {entry.name: entry for entry in source.iterdir()}
    for name in choose_files((name for name, entry in entries.items() if entry.is_file()), str(source)):
        if plain_name(name) == name:
            _link_or_copy(entries[name], target / name)
        elif name.endswith(".json"):
            index = json.loads(entries[name].read_text(encoding="utf-8"))
            index["weight_map"] = {tensor: plain_name(file) for tensor, file in index["weight_map"].items()}
            (target / plain_name(name)).write_text(json.dumps(index, indent=2), encoding="utf-8")
        else:
            _link_or_copy(entries[name], target / plain_name(name))
    for name, entry in entries.items():
        if entry.is_dir():
            shutil.copytree(entry, target / name, copy_function=_link_or_copy)


def check_space(folder: Path, needed: int) -> None:
    """Raise RunStopped unless `needed` bytes are free on the disk of `folder`, which exists."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise RunStopped(
            f"the pipeline's other parts take {needed:,} bytes, and {folder.parent} has {free:,} bytes left",
            "free some space and run the same command again: it goes on from here",
        )


def _link_or_copy(source: str | Path, target: str | Path) -> str:
    """Weights, which nobody edits, are linked where that is possible: they can be many times the student."""
    real = os.path.realpath(source)
    if real.endswith((".safetensors", ".bin")) or os.path.getsize(real) > LINKED_FROM:
        try:
            os.link(real, target)
            return str(target)
        except OSError:  # another file system, or one without links
            pass
    shutil.copyfile(real, target)
    return str(target)
