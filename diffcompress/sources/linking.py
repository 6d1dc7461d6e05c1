"""Parts of a pipeline from one folder into another, without a second copy of large files where that is possible.

Only what a part is made of goes along: files of known names that lie, links followed, inside the pipeline's folder or
the Hub's cache. All else is the user's own, and an export may be published.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from diffcompress.errors import RunStopped
from diffcompress.records.run_files import write_json
from diffcompress.sources.model_index import leaving_out
from diffcompress.sources.variants import choose_files, is_known, plain_name

# Files larger than this are linked rather than copied.
LINKED_FROM = 10 << 20


def link_part(source: Path, target: Path, *, borrow: bool = False) -> None:
    """A part of a pipeline into the new folder `target`: one variant of its weights, under their plain names, as
    safetensors.

    borrow: weights as symbolic links, on whatever disk, for a folder that is soon thrown away. Raises UsageError when
    a shard is missing, or pickled beyond a state dict.
    """
    target.mkdir(parents=True)
    for file in part_files(source):
        name = file.name
        if name.endswith(".bin"):
            _unpickle(file, target / plain_name(name))
        elif name.endswith(".json") and plain_name(name) != name:
            index = json.loads(file.read_text(encoding="utf-8"))
            index["weight_map"] = {tensor: plain_name(shard) for tensor, shard in index["weight_map"].items()}
            (target / plain_name(name)).write_text(json.dumps(index, indent=2), encoding="utf-8")
        else:
            _link_or_copy(file, target / plain_name(name), os.symlink if borrow else os.link)


def link_pipeline(
    pipeline: Path, parts: Iterable[str], target: Path, *, without: Collection[str] = (), borrow: bool = False
) -> None:
    """`parts` of a pipeline and its index into the folder `target`, which exists; see `link_part`.

    without: parts that the index is to say are left out.
    """
    if without:
        index = json.loads((pipeline / "model_index.json").read_text(encoding="utf-8"))
        write_json(target / "model_index.json", leaving_out(index, without))
    else:
        shutil.copyfile(pipeline / "model_index.json", target / "model_index.json")
    for part in parts:
        link_part(pipeline / part, target / part, borrow=borrow)


def part_files(source: Path) -> list[Path]:
    """What the part `source` of the pipeline around it is made of; empty where there is no such folder.

    Raises UsageError when a shard is missing.
    """
    own = [entry.name for entry in _entries(source) if is_own(entry, source.parent)]
    return [source / name for name in choose_files(own, str(source))]


def left_behind(source: Path) -> list[str]:
    """Names in the part `source` of what does not go along, other formats and variants of its weights apart."""
    found = [entry for entry in _entries(source) if not (is_known(entry.name) and is_own(entry, source.parent))]
    return sorted(entry.name for entry in found)


def links_away(source: Path) -> list[str]:
    """Names of what would go along if it were a regular file in the right place, and will be missed."""
    names = [entry.name for entry in _entries(source)]
    return [name for name in choose_files(names, str(source)) if not is_own(source / name, source.parent)]


def is_own(file: Path, pipeline: Path) -> bool:
    """Whether `file` is a regular one that lies, links followed, inside `pipeline` or the Hub's cache."""
    from huggingface_hub import constants

    # A snapshot in a cache of the Hub, this or another one, is a folder of links into the blobs two folders up.
    blobs = [pipeline.parent.parent / "blobs"] if pipeline.parent.name == "snapshots" else []
    real = Path(os.path.realpath(file))
    places = (pipeline, Path(constants.HF_HUB_CACHE), *blobs)
    return real.is_file() and any(real.is_relative_to(os.path.realpath(place)) for place in places)


def part_bytes(source: Path) -> int:
    """Bytes that `link_part` brings; 0 where there is no such folder."""
    return sum(file.stat().st_size for file in part_files(source))


def check_space(folder: Path, needed: int) -> None:
    """Raise RunStopped unless `needed` bytes are free on the disk of `folder`, which exists."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise RunStopped(
            f"the pipeline's other parts take {needed:,} bytes, and {folder.parent} has {free:,} bytes left",
            "free some space and run the same command again: it goes on from here",
        )


def _entries(source: Path) -> list[Path]:
    return list(source.iterdir()) if source.is_dir() else []


def _unpickle(source: Path, target: Path) -> None:
    """Pickled weights as safetensors, where tensors share no memory."""
    from safetensors.torch import save_file

    from diffcompress.sources.state import read_pickle  # loads torch, which counting bytes does without

    tensors = {name: value.clone().contiguous() for name, value in read_pickle(source).items()}
    save_file(tensors, target, {"format": "pt"})


def _link_or_copy(source: Path, target: Path, link: Callable[[str, Path], None]) -> None:
    """Weights, which nobody edits, are linked where that is possible: they can be many times the student."""
    real = os.path.realpath(source)
    if real.endswith(".safetensors") or os.path.getsize(real) > LINKED_FROM:
        try:
            link(real, target)
            return
        except OSError:  # another file system, or one without links
            pass
    shutil.copyfile(real, target)


def unlist(folder: Path, part: str) -> None:
    """Take `part` out of a pipeline's index, for one that is handed over: diffusers looks for parts that a class may go
    without in the folder all the same (WanPipeline's denoiser)."""
    file = folder / "model_index.json"
    index = json.loads(file.read_text(encoding="utf-8"))
    file.unlink()  # it may be a link
    write_json(file, {key: value for key, value in index.items() if key != part})
