"""Which precision a denoiser computes in: half on a GPU, as far as that changes little of what it says."""

from __future__ import annotations

import torch
from diffusers import ModelMixin
from torch import Tensor, nn

from diffcompress.runtime import computes_bfloat16, holds_bfloat16

# Denoisers of more parameters stay in their stored precision on any accelerator, where float32 would not fit.
LARGE = 1_000_000_000
# Of a prediction's root mean square at any of SHARES of the noise process, on SAMPLES random inputs. In bfloat16 the
# embedded teachers, pixel and latent, differ by 0.3 to 0.7 % from float32; students by 10 % and more.
MOST_ROUNDING = 0.03
SHARES, SAMPLES = (0.05, 0.5, 0.95), 2


def choose(device: torch.device, stored: torch.dtype, params: int) -> torch.dtype:
    """bfloat16 where the device multiplies in it, else float16 on a GPU for weights that were stored so; LARGE
    denoisers as they were stored; float32 for all others, on a CPU, and where the device has no such dtype."""
    if computes_bfloat16(device):
        return torch.bfloat16
    if device.type != "cpu" and (params > LARGE or (device.type == "cuda" and stored == torch.float16)):
        return stored if stored != torch.bfloat16 or holds_bfloat16(device) else torch.float32
    return torch.float32


def dtype_of(denoiser: nn.Module, name: str, dtype: torch.dtype) -> torch.dtype:
    """Of a weight of a denoiser that computes in `dtype`: its class may want some parts in float32."""
    kept = getattr(denoiser, "_keep_in_fp32_modules", None) or ()
    return torch.float32 if any(part in name.split(".") for part in kept) else dtype


def cast(denoiser: ModelMixin, dtype: torch.dtype) -> ModelMixin:
    """`denoiser` computing in `dtype`, in place. Buffers that are no part of its weights keep their precision."""
    for name, value in denoiser.state_dict(keep_vars=True).items():
        if value.is_floating_point():
            value.data = value.data.to(dtype_of(denoiser, name, dtype))
    return denoiser


def difference(one: Tensor, other: Tensor) -> float:
    """The largest relative root mean square difference of predictions `[SHARES, ...]`; infinite where one is not
    finite."""
    apart, size = ((values.flatten(1).square().mean(1)).sqrt() for values in (one - other, other))
    found = (apart / size.clamp(min=1e-12)).max().item()
    return found if found == found else float("inf")
