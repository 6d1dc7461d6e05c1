"""What a denoiser of some config costs, counted on the meta device: nothing is allocated and no weights are read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from diffcompress.families.base import Family
from diffcompress.student.size import build

# float32 weights, gradients, Adam's two moments, and the averaged copy that is exported.
TRAINING_BYTES_PER_PARAMETER = 4 + 4 + 8 + 4
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Costs:
    """params: no buffers; macs: multiply-accumulates of one call at batch 1; saved_bytes: activations kept for the
    backward pass, per sample, in float32; shapes: of all tensors in a weight file."""

    params: int
    macs: int
    saved_bytes: int
    shapes: Mapping[str, tuple[int, ...]]

    def file_bytes(self, dtype: str) -> int:
        """Exact size of the safetensors file with all tensors in `dtype`."""
        itemsize = DTYPES[dtype].itemsize
        code = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}[dtype]
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
        # safetensors lays tensors of one dtype out by name.
        for name, shape in sorted(self.shapes.items()):
            end = offset + itemsize * torch.Size(shape).numel()
            header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [offset, end]}
            offset = end
        length = len(json.dumps(header, separators=(",", ":")))
        return 8 + -(-length // 8) * 8 + offset

    def training_bytes(self, batch_size: int) -> int:
        return self.params * TRAINING_BYTES_PER_PARAMETER + self.saved_bytes * batch_size


def count(family: Family, config: Mapping[str, Any]) -> Costs:
    """Costs of the denoiser that `config` builds."""
    denoiser = build(family, config, "meta")
    with torch.device("meta"):
        inputs = family.example_inputs(config)
    conditioning = {name: value for name, value in inputs.items() if name not in ("noisy", "timestep")}
    own = {p.untyped_storage()._cdata for p in denoiser.parameters()}
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            saved[storage._cdata] = storage.nbytes()
        return tensor

    counter = FlopCounterMode(display=False)
    with saved_tensors_hooks(keep, lambda tensor: tensor), counter:
        prediction = family.predict(denoiser, inputs["noisy"], inputs["timestep"], conditioning)
    del prediction  # held the graph, so that no storage's address came twice
    shapes = {name: tuple(value.shape) for name, value in denoiser.state_dict().items()}
    params = sum(p.numel() for p in denoiser.parameters())
    return Costs(params, counter.get_total_flops() // 2, sum(saved.values()), shapes)
