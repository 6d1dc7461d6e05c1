"""The denoiser as GGUF with weights of 8 bits, in the layout of its authors; needs the extra `diffcompress[gguf]`."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from diffcompress.errors import DiffCompressError, UsageError
from diffcompress.export.original import check_shape
from diffcompress.sources.originals import FLUX, PREFIX, SD3, to_original

# What programs know the layouts by. U-Nets are mostly convolutions, which no program takes in 8 bits.
ARCHITECTURES = {SD3: "sd3", FLUX: "flux"}
# Values that share a scale.
_BLOCK = 32
# Of a tensor's norm: half a step of 127 for each value is 2.2 % of a block's norm at most, and 0.5 % of normal values.
# What is further off, its values being too small for a scale in half precision, stays as it is.
TOLERANCE = 0.025


def check_gguf(class_name: str, config: Mapping[str, Any]) -> None:
    """Raise UsageError when the extra `gguf` is missing, or for a student that such a file cannot be of."""
    if importlib.util.find_spec("gguf") is None:
        raise UsageError("export.gguf needs gguf, which is not installed", "pip install 'diffcompress[gguf]'")
    if class_name not in ARCHITECTURES:
        raise UsageError(
            f"export.gguf cannot write this student: a {class_name} is none of {', '.join(ARCHITECTURES)}",
            "--set export.gguf=false goes on without it",
        )
    check_shape(class_name, config, "export.gguf")


def export_gguf(state: Mapping[str, Tensor], config: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """Write `file` and read it again.

    Matrices are quantised (Q8_0: blocks of 32 values and a scale in half precision), everything else stays float32.
    config: with `_class_name`. Returns {"quantised", "tensors", "difference"}: counts, and the largest difference of a
    tensor, relative to its norm. Raises DiffCompressError when one is more than TOLERANCE off.
    """
    import gguf

    values = {
        name.removeprefix(PREFIX): value.float().cpu().numpy() for name, value in to_original(state, config).items()
    }
    writer = gguf.GGUFWriter(file, ARCHITECTURES[config["_class_name"]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    for name, value in values.items():
        data, kind = _stored(value)
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    found = {one.name: one for one in gguf.GGUFReader(file).tensors}
    off = [_difference(one.data, one.tensor_type, values[name]) for name, one in found.items() if name in values]
    if len(off) != len(values) or not all(one <= TOLERANCE for one in off):
        raise DiffCompressError(
            f"{file.name} does not hold what the student does when it is read again: {len(off)} of {len(values)} "
            f"tensors, one of them {max(off, default=0.0):.2g} off",
            "keep the run folder and report this as a bug; --set export.gguf=false goes on without it",
        )
    quantised = sum(one.tensor_type == gguf.GGMLQuantizationType.Q8_0 for one in found.values())
    return {"quantised": quantised, "tensors": len(found), "difference": max(off)}


def _stored(value: np.ndarray) -> tuple[np.ndarray, Any]:
    """What is written of a tensor, and as which of GGML's types."""
    import gguf

    coarse = gguf.GGMLQuantizationType.Q8_0
    if value.ndim == 2 and value.shape[1] % _BLOCK == 0:
        data = gguf.quants.quantize(value, coarse)
        if _difference(data, coarse, value) <= TOLERANCE:
            return data, coarse
    return value, gguf.GGMLQuantizationType.F32


def _difference(data: np.ndarray, kind: Any, value: np.ndarray) -> float:
    """Of what `data` says to `value`, relative to its norm."""
    import gguf

    again = gguf.quants.dequantize(data, kind).reshape(value.shape)
    return float(np.linalg.norm(again - value)) / (float(np.linalg.norm(value)) or 1.0)
