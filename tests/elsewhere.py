"""A stand-in for a device of its own memory and without float64, as Apple's is: computed on the CPU, told as "mps".

A tensor on it is of its own class. An operation with one gives others; what that device would refuse raises what it
raises there: float64, tensors of two devices in one operation, numpy's view of its memory, pinned memory, bfloat16
before macOS 14, and linear algebra that torch 2.4 has no kernels for. Its fused AdamW is told of gradients that are not
finite, and does not listen. What it cannot show: operations that other versions lack, and speed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

HERE = torch.device("mps", 0)
# Operations that take tensors of two devices: copies between them, and rows picked by an index that lies on the CPU.
_BETWEEN = ("_to_copy", "copy_", "_copy_from", "index", "index_put_", "set_", "_index_put_impl_")
_NOT_THERE = ("_linalg_solve_ex", "_linalg_eigh", "_linalg_svd", "linalg_lstsq", "linalg_qr", "linalg_cholesky_ex")


class Elsewhere(torch.Tensor):
    """Values on the CPU that nothing may read there but by `to` or `cpu`."""

    __torch_function__: Any = torch._C._disabled_torch_function_impl

    @staticmethod
    def of(value: Any) -> Any:
        if not isinstance(value, Tensor) or isinstance(value, Elsewhere):
            return value
        if value.dtype in (torch.float64, torch.complex128):
            raise TypeError(
                "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."
            )
        if value.dtype == torch.bfloat16 and not torch.backends.mps.is_macos_or_newer(14, 0):
            raise TypeError("BFloat16 is not supported on MPS before macOS 14")
        return torch.Tensor._make_subclass(Elsewhere, value)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch says that it is static, and calls it as a class's
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _run(func, args, kwargs or {})

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return HERE

    def to(self, *args: Any, **kwargs: Any) -> Tensor:  # type: ignore[override]
        if args and isinstance(args[0], Tensor):
            return self.to(args[0].device, args[0].dtype)
        copied = bool(kwargs.pop("copy", False))
        device, dtype, blocking, layout = torch._C._nn._parse_to(*args, **kwargs)
        dtype, device = dtype or self.dtype, device or HERE
        if device.type == HERE.type and dtype == self.dtype and not copied:
            return self
        return torch.ops.aten._to_copy.default(
            self, dtype=dtype, device=device, non_blocking=blocking, memory_format=layout
        )

    def cpu(self) -> Tensor:  # type: ignore[override]
        return self.to("cpu")

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __repr__(self, **kwargs: Any) -> str:  # type: ignore[override]
        return f"{self.cpu()} on {HERE}"

    def type_as(self, other: Tensor) -> Tensor:
        return self.to(other)

    def numpy(self, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        raise TypeError("can't convert mps:0 device type tensor to numpy. Use Tensor.cpu() first.")

    __array__ = numpy

    def pin_memory(self, *args: Any, **kwargs: Any) -> Tensor:  # type: ignore[override]
        raise RuntimeError("cannot pin 'torch.mps.FloatTensor' only dense CPU tensors can be pinned")


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Indexed(TorchFunctionMode):
    """Where torch was built without such devices, it asks no driver about "mps:0", as it would about "mps"."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = {"mps": HERE, torch.device("mps"): HERE}
        args = tuple(named.get(value, value) if isinstance(value, str | torch.device) else value for value in args)
        kwargs = dict(kwargs or {})
        if "device" in kwargs:
            kwargs["device"] = named.get(kwargs["device"], kwargs["device"])
        if func is Tensor.to and len(args) > 1 and isinstance(args[1], Elsewhere):
            return args[0].to(HERE, args[1].dtype)
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") == HERE:
            return func(*args, **{**kwargs, "device": "cpu"}).to(HERE)
        return func(*args, **kwargs)


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name, asked = func._overloadpacket.__name__, kwargs.get("device")
    tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
    there = any(isinstance(value, Elsewhere) for value in tensors)
    # What torch's own code for gradients makes anew, it makes where memory really is.
    gradient = torch._C._current_graph_task_id() != -1 and torch.device(asked or "cpu").type == "cpu"
    if gradient and name != "_to_copy":
        there, asked = True, None
    elif there and name not in _BETWEEN:
        apart = [value for value in tensors if not isinstance(value, Elsewhere) and value.dim()]
        if apart:
            raise RuntimeError(f"Expected all tensors to be on the same device, but {name} got mps:0 and cpu")
    if asked is not None:
        there = torch.device(asked).type == HERE.type
        kwargs = {**kwargs, "device": torch.device("cpu")}
    elif tensors and not gradient and name in ("copy_", "index_put_", "_index_put_impl_", "index", "set_"):
        there = isinstance(args[0], Elsewhere)
    if kwargs.get("pin_memory") and torch.device(asked or "cpu").type == "cpu":
        raise RuntimeError("Cannot access accelerator device when none is available.")
    if there and name in _NOT_THERE:
        raise NotImplementedError(f"The operator 'aten::{name}' is not currently implemented for the MPS device.")
    if there and name == "_fused_adamw_":
        kwargs = {**kwargs, "found_inf": None}
    with torch._C._DisableTorchDispatch():  # type: ignore[attr-defined]
        result = func(*args, **kwargs)
    return tree_map(Elsewhere.of if there else _plain, result)


def _plain(value: Any) -> Any:
    return torch.Tensor._make_subclass(torch.Tensor, value) if isinstance(value, Elsewhere) else value


@contextmanager
def a_machine_with_one(monkeypatch: pytest.MonkeyPatch, macos: int = 15) -> Iterator[None]:
    """torch says that there is such a device, and everything under this runs with it."""
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor: (macos, 0) >= (major, minor))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_built", lambda: True)
    monkeypatch.setattr(torch.mps, "synchronize", lambda: None)
    AcceleratorState._reset_state(reset_partial_state=True)  # which keeps the first device of a process
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(
        True
    )  # of another class, they cannot be set, and stay themselves so
    try:
        with _Mode(), _Indexed():
            yield
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)
        AcceleratorState._reset_state(reset_partial_state=True)
