"""What a denoiser of some config costs, counted on the meta device: nothing is allocated and no weights are read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from diffcompress.families.base import Family
from diffcompress.sources.state import SAFETENSORS_DTYPES
from diffcompress.student.size import build

# float32 weights, gradients, Adam's two moments, and the averaged copy that is exported.
TRAINING_BYTES_PER_PARAMETER = 4 + 4 + 8 + 4
CODES = {name: code for code, name in SAFETENSORS_DTYPES.items()}


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
        itemsize = getattr(torch, dtype).itemsize
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
        # safetensors lays tensors of one dtype out by name.
        for name, shape in sorted(self.shapes.items()):
            end = offset + itemsize * torch.Size(shape).numel()
            header[name] = {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
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

    counter, attention = FlopCounterMode(display=False), _FusedAttention()
    with saved_tensors_hooks(keep, lambda tensor: tensor), counter, attention:
        prediction = family.predict(denoiser, inputs["noisy"], inputs["timestep"], conditioning)
    del prediction  # held the graph, so that no storage's address came twice
    shapes = {name: tuple(value.shape) for name, value in denoiser.state_dict().items()}
    params = sum(p.numel() for p in denoiser.parameters())
    return Costs(params, counter.get_total_flops() // 2 + attention.macs, sum(saved.values()), shapes)


class _FusedAttention(TorchFunctionMode):
    """Attention as fused kernels do it: on the meta device torch would build, and keep, the whole attention matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        query, key, value = (
            args[i] if i < len(args) else (kwargs or {})[name] for i, name in enumerate(("query", "key", "value"))
        )
        pairs = query.shape[:-1].numel() * key.shape[-2]
        self.macs += pairs * (query.shape[-1] + value.shape[-1])
        return _Kept.apply(query, key, value)


class _Kept(torch.autograd.Function):
    """Keeps what fused attention keeps: queries, keys, values and its output."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, output)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        raise NotImplementedError("costs are counted without a backward pass")
