"""How much memory a computation takes, and how many rows of it fit: on a GPU as its allocator tells, elsewhere counted.

Counting works on the meta device too, where nothing is computed and nothing allocated.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Of the free memory at most: allocators lose some to gaps, and libraries take some to work in.
SHARE = 0.8


@dataclass(frozen=True)
class Need:
    """Bytes that a computation takes at once at most: `fixed`, and `row` more for each row of its batch."""

    fixed: int
    row: int

    @classmethod
    def of(cls, call: Callable[[int], object], device: torch.device, *, alone: bool = False) -> Need:
        """From `call(1)` and `call(2)`, which run a batch of so many rows on `device`.

        alone: from `call(1)`, in half the time, where nobody asks for more rows; `fixed` is not told apart then.
        """
        with attention_in_pieces(device):
            if device.type == "cuda":
                call(1)  # libraries take their own memory once
            first = peak(lambda: call(1), device)
            if alone:
                return cls(0, first)
            try:
                second = peak(lambda: call(2), device)
            except torch.OutOfMemoryError:
                return cls(0, first)
        row = max(1, second - first)
        return cls(max(0, first - row), row)

    def bytes(self, rows: int) -> int:
        return self.fixed + self.row * rows

    def rows_in(self, free: int) -> int:
        """Rows that `SHARE` of `free` bytes hold; 1 at least."""
        return max(1, (int(SHARE * free) - self.fixed) // self.row)

    def rows(self, free: int, most: int) -> int:
        """Rows that `SHARE` of `free` bytes hold, in round numbers, 2^n or 3 * 2^n, up to `most`; 1 at least."""
        fitting = min(self.rows_in(free), most)
        sizes = [base << shift for base in (1, 3) for shift in range(most.bit_length())]
        return max(size for size in sizes if size <= fitting)


def peak(call: Callable[[], object], device: torch.device) -> int:
    """Bytes of what `call` makes that exist at once at most, its result among them."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        result = call()
        del result
        return torch.cuda.max_memory_allocated(device) - before
    with LiveBytes(device.type) as live:
        result = call()
        del result
    return live.peak


@contextmanager
def gradients(model: nn.Module) -> Iterator[None]:
    """All gradients of `model` are there, as after a first step, and leave in the end.

    Else they come while activations go, and what a batch of one takes says little of a larger one.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    try:
        yield
    finally:
        model.zero_grad()


class LiveBytes(TorchDispatchMode):
    """Bytes of memory that operations under this mode have made and that is in use, whoever uses it.

    kind: of the devices whose memory counts.
    """

    def __init__(self, kind: str = "cpu") -> None:
        super().__init__()
        self._kind = kind
        self.peak = self._now = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {_address(value) for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)}
        for value in tree_leaves(result):
            if not isinstance(value, Tensor) or value.device.type != self._kind:
                continue
            if _address(value) not in self._alive | given:
                self._add(value.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        self._alive.add(storage._cdata)
        self._now += storage.nbytes()
        self.peak = max(self.peak, self._now)
        weakref.finalize(storage, self._remove, storage._cdata, storage.nbytes())

    def _remove(self, address: int, size: int) -> None:
        self._alive.discard(address)
        self._now -= size


def _address(value: Tensor) -> int:
    return value.untyped_storage()._cdata


@contextmanager
def attention_in_pieces(device: torch.device) -> Iterator[None]:
    """On the meta device attention counts as fused kernels do it, without the whole matrix; elsewhere as it is."""
    if device.type != "meta":
        yield
        return
    with FusedAttention():
        yield


class FusedAttention(TorchFunctionMode):
    """Attention as fused kernels do it: on the meta device torch would build, and keep, the whole attention matrix.

    macs: multiply-accumulates of all calls.
    """

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        given = dict(zip(("query", "key", "value", "attn_mask"), args, strict=False)) | (kwargs or {})
        query, key, value = given["query"], given["key"], given["value"]
        _check_attention(query, key, value, given.get("attn_mask"), grouped=given.get("enable_gqa", False))
        pairs = query.shape[:-1].numel() * key.shape[-2]
        self.macs += pairs * (query.shape[-1] + value.shape[-1])
        return _Kept.apply(query, key, value)


def _check_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, grouped: bool) -> None:
    """Raise RuntimeError where attention itself would. grouped: keys and values may have fewer heads."""
    rest = -3 if grouped else -2
    batch = torch.broadcast_shapes(query.shape[:rest], key.shape[:rest], value.shape[:rest])
    if query.shape[-1] != key.shape[-1] or key.shape[-2] != value.shape[-2]:
        raise RuntimeError(f"attention of queries {query.shape}, keys {key.shape} and values {value.shape}")
    if mask is not None:
        torch.broadcast_shapes(mask.shape, (*batch, *query.shape[rest:-1], key.shape[-2]))


class _Kept(torch.autograd.Function):
    """Keeps what fused attention keeps: queries, keys, values and its output."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, output)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        query, key, value, _ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
