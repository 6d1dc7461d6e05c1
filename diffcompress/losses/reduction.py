"""What every loss here shares: input checks, compute precision, and the two published reductions."""

from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

Prediction = Float[Tensor, "batch channels *spatial"]
PerSample = Float[Tensor, " batch"]
Scalar = Float[Tensor, ""]
Reduction = Literal["mean", "sum"]


def one_of(name: str, value: str, kind: Any) -> None:
    """Raise ValueError, naming the value, unless the Literal `kind` has it."""
    if value not in get_args(kind):
        raise ValueError(f"unknown {name} {value!r}: choose one of {', '.join(get_args(kind))}")


def precise(student: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Both tensors in float32, or float64 if either is; the target without gradient. ValueError on unequal shapes."""
    if student.shape != target.shape:
        raise ValueError(f"student shape {tuple(student.shape)} differs from target shape {tuple(target.shape)}")
    if student.numel() == 0:
        raise ValueError(f"empty output of shape {tuple(student.shape)}")
    dtype = torch.promote_types(torch.promote_types(student.dtype, target.dtype), torch.float32)
    return student.to(dtype), target.detach().to(dtype)


def size_factor(reduction: Reduction, output: Tensor) -> int:
    """The published `sum` (mean over the batch alone) is the published `mean` times this: the elements per sample."""
    one_of("reduction", reduction, Reduction)
    return output[0].numel() if reduction == "sum" else 1


def raised(values: Tensor, power: float) -> Tensor:
    """`values ** power` (values >= 0) whose gradient at 0 is 0 whatever the power; nan stays nan."""
    if power == 1:
        return values
    positive = values != 0
    return torch.where(positive, torch.where(positive, values, 1.0).pow(power), 0.0)


def root(mean_square: Tensor) -> Tensor:
    """Square root whose gradient at 0 is 0 instead of infinite; nan stays nan."""
    return raised(mean_square, 0.5)
