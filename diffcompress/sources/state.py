"""State dicts on disk, read tensor by tensor."""

from __future__ import annotations

import contextlib
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from diffcompress.errors import UsageError
from diffcompress.runtime import dtype_name
from diffcompress.sources.variants import PICKLES

# For whoever trusts a pickle; a training framework's checkpoint keeps the weights under "state_dict".
_CONVERT = (
    'import sys, torch, safetensors.torch as s; d = torch.load(sys.argv[1], weights_only=False, map_location="cpu"); '
    'd = d.get("state_dict", d); d = {k: v.clone().contiguous() for k, v in d.items() if torch.is_tensor(v)}; '
    "s.save_file(d, sys.argv[2])"
)
_POINTER = b"version https://git-lfs"
_ZIP = b"PK\x03\x04"
SAFETENSORS_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class StoredState(Mapping[str, Tensor]):
    """The tensors of one or more weight files; each is read when it is asked for, and checked to be finite.

    Names, shapes and dtypes come from safetensors headers, those of pickles from what they hold beside the numbers, and
    only as bare state dicts. Raises UsageError for files that are damaged, empty, or pickled beyond a state dict.
    """

    def __init__(self, files: Sequence[Path], headers: Iterable[Any] | None = None) -> None:
        """headers: in place of the files, asked as safetensors' own handles are, for names, shapes and dtypes."""
        self.files = tuple(files)
        self._places: dict[str, tuple[Path, Any]] = {}
        for file, source in zip(self.files, map(_source, self.files) if headers is None else headers, strict=True):
            self._places |= {name: (file, source) for name in source.keys()}  # noqa: SIM118 (a handle is no mapping)
        if self.dtype is None:
            coarse = next(filter(self.is_eight_bits, self), None)
            raise UsageError(
                f"{self.files[0]} holds no floating-point tensors of 16 bits or more",
                f"{coarse} is of 8 bits: take half or full precision" if coarse else "check that this is a denoiser",
            )

    def __getitem__(self, name: str) -> Tensor:
        return _read(name, *self._places[name])

    def anew(self, name: str) -> Tensor:
        """As `[name]`, through a handle of its own: pages of a mapped file stay in memory until their handle goes."""
        file, source = self._places[name]
        return _read(name, file, source if isinstance(source, dict) else _open(file))

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def shape(self, name: str) -> tuple[int, ...]:
        _, source = self._places[name]
        return tuple(source[name].shape if isinstance(source, dict) else source.get_slice(name).get_shape())

    @property
    def dtype(self) -> torch.dtype | None:
        """The floating-point dtype of most tensors."""
        found = Counter(self.dtype_of(name) for name in self._places)
        names = [name for name, _ in found.most_common() if name is not None]
        return getattr(torch, names[0]) if names else None

    def dtype_of(self, name: str) -> str | None:
        """A stored tensor's dtype as torch calls it; None for integers and for floating point of less than 16 bits."""
        _, source = self._places[name]
        if isinstance(source, dict):
            found = dtype_name(source[name].dtype)
            return found if found in SAFETENSORS_DTYPES.values() else None
        return SAFETENSORS_DTYPES.get(source.get_slice(name).get_dtype())

    def is_eight_bits(self, name: str) -> bool:
        """Whether a tensor is floating-point of 8 bits: too coarse for a teacher, and unknown to most of torch."""
        _, source = self._places[name]
        return str(source[name].dtype if isinstance(source, dict) else source.get_slice(name).get_dtype()).startswith(
            ("F8", "torch.float8")
        )


def _read(name: str, file: Path, source: Any) -> Tensor:
    try:
        value: Tensor = source[name] if isinstance(source, dict) else source.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise _unreadable(file, error) from error
    # By its extremes, which NaN is one of: in half precision that takes a thirtieth of the time.
    if value.is_floating_point() and value.numel() and not torch.isfinite(torch.stack(value.aminmax())).all():
        raise UsageError(f"{file} is damaged: {name} holds NaN or infinite values", "use an intact checkpoint")
    return value


def _source(file: Path) -> Any:
    _refuse_pointer(file)
    return read_pickle(file) if file.suffix in PICKLES else _open(file)


def _refuse_pointer(file: Path) -> None:
    """Raise UsageError for what `git clone` leaves in place of large files where Git LFS is not installed."""
    with contextlib.suppress(OSError), file.open("rb") as stream:
        if stream.read(len(_POINTER)) == _POINTER:
            raise UsageError(f"{file} is a pointer of Git LFS, not the weights", "run `git lfs pull` in its folder")


def _open(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: Exception) -> UsageError:
    return UsageError(f"{file} cannot be read as safetensors: {error}", "check that the download is complete")


def read_pickle(file: Path) -> dict[str, Tensor]:
    """A bare pickled state dict; anything more could run code and is refused."""
    command = shlex.join(["python", "-c", _CONVERT, str(file), str(file.with_suffix(".safetensors"))])
    advice = f"convert it where you trust it: {command}"
    try:
        with file.open("rb") as stream:
            zipped = stream.read(len(_ZIP)) == _ZIP
        # Numbers stay on the disk until they are asked for, but for what torch wrote before 1.6.
        state = torch.load(file, weights_only=True, map_location="cpu", mmap=zipped)
    except Exception as error:
        raise UsageError(
            f"{file} is a pickle with more than a bare state dict, which could run code, or is damaged", advice
        ) from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UsageError(f"{file} is a pickle, but not of a bare state dict", advice)
    return state
