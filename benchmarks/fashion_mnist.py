"""Fashion-MNIST (Xiao, Rasul, Vollgraf 2017; MIT licence) as Debian's package `dataset-fashion-mnist` installs it."""

import gzip
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FOLDER = Path("/usr/share/datasets/fashion-mnist")
CLASS_NAMES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")


def load(split: str) -> tuple[Tensor, Tensor]:
    """Images `[N, 1, 28, 28]` in [-1, 1] and labels `[N]` of `split` ("train": 60,000, "test": 10,000).

    Raises SystemExit naming the Debian package when the data are not installed.
    """
    prefix = {"train": "train", "test": "t10k"}[split]
    if not FOLDER.is_dir():
        raise SystemExit(f"{FOLDER} is missing: install the Debian package dataset-fashion-mnist")
    raw_images = gzip.decompress((FOLDER / f"{prefix}-images-idx3-ubyte.gz").read_bytes())
    raw_labels = gzip.decompress((FOLDER / f"{prefix}-labels-idx1-ubyte.gz").read_bytes())
    pixels = np.frombuffer(raw_images, dtype=np.uint8, offset=16).reshape(-1, 1, 28, 28)
    labels = np.frombuffer(raw_labels, dtype=np.uint8, offset=8)
    images = torch.from_numpy(pixels.astype(np.float32) / 127.5 - 1.0)
    return images, torch.from_numpy(labels.astype(np.int64))
