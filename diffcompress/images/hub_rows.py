"""Rows of a data set on the Hub, streamed by the `datasets` library, which finds the files of any layout.

Since 4.0 it runs no code of a data set's, and it reads no pickles.
"""

from __future__ import annotations

import contextlib
import itertools
import tarfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from diffcompress.errors import DiffCompressError, UsageError
from diffcompress.images import columns as naming
from diffcompress.images.columns import Columns
from diffcompress.sources import hub_errors

SPLIT = "train"
SEED = 0
# Files often lie class by class, so the order is mixed. A row of a table holds its image, one of a file only its name.
MIXED_FILES, MIXED_ROWS = 100_000, 1_000
_TOGETHER = 16
_OLDEST = 4
_RETRIES = 2


@dataclass(frozen=True)
class Row:
    """One image as it is stored, None where the row holds none."""

    content: bytes | None
    label: int | None
    text: str | None


@dataclass(frozen=True)
class Rows:
    """One split of a data set; subset: the configuration it belongs to; all_columns: names of every column."""

    subset: str
    split: str
    columns: Columns
    all_columns: list[str]
    stream: Any
    place: str

    def __iter__(self) -> Iterator[Row]:
        """All rows, in an order that follows from SEED alone."""
        image, label, text = self.columns.image, self.columns.label, self.columns.text
        rows = iter(self.stream)
        with ThreadPoolExecutor(_TOGETHER) as pool:
            while several := list(itertools.islice(rows, _TOGETHER)):
                contents = pool.map(self._content, [row[image] for row in several])
                for row, content in zip(several, contents, strict=True):
                    yield Row(
                        content,
                        self.columns.label_of(row[label]) if label else None,
                        naming.text_of(row[text]) if text else None,
                    )

    def _content(self, value: Any) -> bytes | None:
        if not isinstance(value, Mapping):
            return value
        path = value.get("path") or ""
        # A row may name any file of this machine or any address: only files of the data set itself are read.
        if value.get("bytes") or not path.rpartition("::")[2].startswith(self.place):
            return value.get("bytes")
        import fsspec

        try:
            with fsspec.open(path, "rb") as file:
                return file.read()
        except FileNotFoundError:
            return None


def open_rows(name: str, commit: str) -> Rows:
    """The training split of `name`, or its first; of several subsets the default or the first.

    Raises UsageError without the library, and for what has no image column. To be called within `refusals`.
    """
    from huggingface_hub import HfApi

    datasets = _library(name)
    HfApi().auth_check(name, repo_type="dataset")  # the library hides why it was refused
    subset = (
        datasets.get_dataset_default_config_name(name, revision=commit)
        or datasets.get_dataset_config_names(name, revision=commit)[0]
    )
    builder = datasets.load_dataset_builder(name, subset, revision=commit)
    if builder.hash != commit:  # it falls back on whatever version it finds in its own cache
        raise ConnectionError(f"{name} is {builder.hash} instead of {commit}")
    splits = builder.as_streaming_dataset()
    split = SPLIT if SPLIT in splits else next(iter(splits))
    features = splits[split].features or {}
    columns = naming.find(features)
    if columns.image is None:
        raise UsageError(
            f"'{name}' has no image column (its columns are {', '.join(features) or 'unknown'})",
            "name a data set of image files or with a column image, or a folder of images",
        )
    mixed = MIXED_FILES if builder.name == "imagefolder" else MIXED_ROWS
    stream = splits[split].decode(False).shuffle(seed=SEED, buffer_size=mixed)
    return Rows(subset, str(split), columns, list(features), stream, f"hf://datasets/{name}@{commit}/")


@contextlib.contextmanager
def refusals(name: str, commit: str) -> Iterator[None]:
    """Turn what reading a data set raises into an AccessError where the Hub refused, else into a UsageError."""
    try:
        yield
    except DiffCompressError:
        raise
    except Exception as error:
        refused = hub_errors.explain(error, f"datasets/{name}", commit)
        if refused is not None:
            raise refused from error
        from datasets.exceptions import DatasetsError

        # RuntimeError: what the library says of a data set that is a script.
        if isinstance(error, (DatasetsError, FileNotFoundError, ValueError, RuntimeError, tarfile.TarError)):
            told = str(error).strip().partition("\n")[0]
            raise UsageError(
                f"'{name}' cannot be read as a data set of images ({type(error).__name__}: {told})",
                "download it, and name a folder of its images",
            ) from error
        raise


def _library(name: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise _missing(name, "is not installed") from error
    if int(datasets.__version__.partition(".")[0]) < _OLDEST:
        raise _missing(name, f"is too old here ({datasets.__version__}, {_OLDEST}.0 is needed)")
    from huggingface_hub.utils import are_progress_bars_disabled

    # Each of them is five of huggingface_hub's own, half a minute; the default is 20, in silence.
    datasets.config.STREAMING_READ_MAX_RETRIES = _RETRIES
    if are_progress_bars_disabled():
        datasets.disable_progress_bars()
    return datasets


def _missing(name: str, why: str) -> UsageError:
    return UsageError(
        f"'{name}' is a data set on the Hub, and the datasets library that reads it {why}",
        "pip install 'diffcompress[datasets]', or name a folder of images",
    )
