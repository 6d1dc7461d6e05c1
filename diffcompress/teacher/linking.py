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
    """A part of a pipeline into the new folder `target`: one variant of its weights, under their plain names, as
    safetensors.

    Raises UsageError when a shard is missing, or pickled beyond a state dict.
    """
    target.mkdir(parents=True)
    chosen, folders = _contents(source)
    for file in chosen:
        name = file.name
        if name.endswith(".bin"):
            _unpickle(file, target / plain_name(name))
        elif name.endswith(".json") and plain_name(name) != name:
            index = json.loads(file.read_text(encoding="utf-8"))
            index["weight_map"] = {tensor: plain_name(shard) for tensor, shard in index["weight_map"].items()}
            (target / plain_name(name)).write_text(json.dumps(index, indent=2), encoding="utf-8")
        else:
            _link_or_copy(file, target / plain_name(name))
    for folder in folders:
        shutil.copytree(folder, target / folder.name, copy_function=_link_or_copy)


def part_bytes(source: Path) -> int:
    """What `link_part` brings; 0 where there is no such folder."""
    if not source.is_dir():
        return 0
    chosen, folders = _contents(source)
    inside = (file for folder in folders for file in folder.rglob("*") if file.is_file())
    return sum(file.stat().st_size for file in (*chosen, *inside))


def check_space(folder: Path, needed: int) -> None:
    """Raise RunStopped unless `needed` bytes are free on the disk of `folder`, which exists."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise RunStopped(
            f"the pipeline's other parts take {needed:,} bytes, and {folder.parent} has {free:,} bytes left",
            "free some space and run the same command again: it goes on from here",
        )


def _contents(source: Path) -> tuple[list[Path], list[Path]]:
    """Files and folders of a part."""
    files = [entry.name for entry in source.iterdir() if entry.is_file()]
    folders = [entry for entry in source.iterdir() if entry.is_dir()]
    return [source / name for name in choose_files(files, str(source))], folders


def _unpickle(source: Path, target: Path) -> None:
    """Pickled weights as safetensors, where tensors share no memory."""
    from safetensors.torch import save_file

    from diffcompress.teacher.state import read_pickle  # loads torch, which counting bytes does without

    tensors = {name: value.clone().contiguous() for name, value in read_pickle(source).items()}
    save_file(tensors, target, {"format": "pt"})


def _link_or_copy(source: str | Path, target: str | Path) -> str:
    """Weights, which nobody edits, are linked where that is possible: they can be many times the student."""
    real = os.path.realpath(source)
    if real.endswith(".safetensors") or os.path.getsize(real) > LINKED_FROM:
        try:
            os.link(real, target)
            return str(target)
        except OSError:  # another file system, or one without links
            pass
    shutil.copyfile(real, target)
    return str(target)
