"""Data sets of tiny grey images, as files and as a table."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

FILES, TABLE = "someone/files", "someone/table"


def png(value: int) -> bytes:
    stored = io.BytesIO()
    Image.fromarray(np.full((10, 8), value, np.uint8)).save(stored, "PNG")
    return stored.getvalue()


def save_files(folder: Path, names: dict[str, int], metadata: list[dict] | None = None) -> Path:
    for name, value in names.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(value))
    if metadata is not None:
        (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, metadata)))
    return folder


def save_table(folder: Path, name: str = "data/train-00000-of-00001.parquet", **columns) -> Path:
    """A parquet file; `image` is the grey value of each image."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    import datasets

    types = {
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=["cat", "dog", "emu"]),
        "caption": datasets.List(datasets.Value("string")),
        "number": datasets.Value("int64"),
    }
    if "image" in columns:
        columns["image"] = [{"bytes": png(value), "path": None} for value in columns["image"]]
    features = datasets.Features({key: types[key] for key in columns})
    datasets.Dataset.from_dict(columns, features=features).to_parquet(folder / name)
    return folder
