"""Parts of a pipeline in half precision, where they are stored in more.

What a part computes in is not said by its files but by who loads it: diffusers takes autoencoders as float32 and
transformers encoders as their config says, unless told otherwise. Both stay as they were, and so does an autoencoder's
`force_upcast`, by which pipelines that run in float16 decode in float32 where float16 would overflow (SDXL).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from diffcompress.records.run_files import write_json
from diffcompress.sources.linking import part_files
from diffcompress.sources.model_index import read_config
from diffcompress.sources.reference import Reference
from diffcompress.sources.state import SAFETENSORS_DTYPES, read_pickle

_WIDE = {code: getattr(torch, name).itemsize for code, name in SAFETENSORS_DTYPES.items() if name[-2:] in ("32", "64")}
# The most that a tensor may change by rounding, relative to its norm: what half a unit in the last place of float16 or
# bfloat16 comes to, twice. Values beyond the range of float16, or below it, change by more.
_ROUNDING = {torch.float16: 2**-10, torch.bfloat16: 2**-7}


def halve(folder: Path) -> torch.dtype | None:
    """Store a part in half precision: float16, or bfloat16 where float16 does not hold its values.

    `folder` is new: what its files are links to stays as it was. Returns the dtype; None where the part is stored in 16
    bits or fewer, or where neither holds its values (NaN, say), which leaves it as it is.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not any(list(_wide(file)) for file in files):
        return None
    dtype = next((one for one, most in _ROUNDING.items() if all(_holds(file, one, most) for file in files)), None)
    if dtype is None:
        return None
    for file in files:
        _rewrite(file, dtype)
    for file in folder.glob("*.index.json"):
        told = read_config(file)
        sizes = told.get("metadata", {}) | {"total_size": sum(map(_tensor_bytes, files))}
        _replace(file, told | {"metadata": sizes})
    _keep_loading(folder / "config.json")
    return dtype


def saving(reference: Reference, part: str) -> int:
    """Bytes that `halve` takes off a part of the pipeline, from headers; 0 for pickles that are not downloaded."""
    assert reference.pipeline is not None
    repository = reference.repository
    if repository is not None and not repository.has_weights(part):
        return sum(_excess(header) for header in repository.headers(part).values())
    files = part_files(reference.pipeline / part)
    stored = sum(_excess(safe_open(file, framework="pt")) for file in files if file.suffix == ".safetensors")
    pickled = (value for file in files if file.suffix == ".bin" for value in read_pickle(file).values())
    return stored + sum(v.numel() * (v.itemsize - 2) for v in pickled if v.dtype in (torch.float32, torch.float64))


def _excess(source: Any) -> int:
    """Of safetensors headers, as safetensors' own handles are asked."""
    slices = [source.get_slice(name) for name in source.keys()]  # noqa: SIM118 (a handle is no mapping)
    sizes = ((torch.Size(one.get_shape()).numel(), _WIDE.get(one.get_dtype(), 2)) for one in slices)
    return sum(count * (size - 2) for count, size in sizes)


def _wide(file: Path) -> Iterator[Tensor]:
    """The tensors of floating point in more than 16 bits, one after the other."""
    with safe_open(file, framework="pt") as source:
        for name in source.keys():  # noqa: SIM118 (a handle is no mapping)
            if source.get_slice(name).get_dtype() in _WIDE:
                yield source.get_tensor(name)


def _holds(file: Path, dtype: torch.dtype, most: float) -> bool:
    for value in _wide(file):
        change = float((value.to(dtype).to(value.dtype) - value).norm())
        if not (math.isfinite(change) and change <= most * float(value.norm())):
            return False
    return True


def _rewrite(file: Path, dtype: torch.dtype) -> None:
    made = file.with_suffix(".half")
    with safe_open(file, framework="pt") as source:
        wide = {name for name in source.keys() if source.get_slice(name).get_dtype() in _WIDE}  # noqa: SIM118
        tensors = ((name, source.get_tensor(name)) for name in source.keys())  # noqa: SIM118
        save_file({n: v.to(dtype) if n in wide else v for n, v in tensors}, made, source.metadata())
    made.replace(file)


def _tensor_bytes(file: Path) -> int:
    with file.open("rb") as stream:
        header = int.from_bytes(stream.read(8), "little")
    return file.stat().st_size - 8 - header


def _keep_loading(file: Path) -> None:
    """State in an encoder's config that it is loaded in float32, where it does not say: transformers would take what
    is stored, and the denoiser's float32 does not go with that."""
    told = read_config(file) if file.is_file() else {}
    if "model_type" in told and not {"dtype", "torch_dtype"} & set(told):
        _replace(file, {**told, "torch_dtype": "float32"})


def _replace(file: Path, value: Any) -> None:
    file.unlink()  # it may be a link
    write_json(file, value)
