"""Moments and averages shared out over the processes of a run, one owner for each trained tensor: ZeRO, stage 1
(Rajbhandari et al. 2020, arXiv 1910.02054).

Tensors are not cut: Muon makes whole matrices orthogonal (docs/decisions/0023-whole-tensors-have-owners.md).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn

from diffcompress.runtime import dtype_name


@dataclass(frozen=True)
class Sharding:
    """owners: the process that keeps moments and averages of each tensor; index: this process, of `count`; device:
    where tensors are exchanged."""

    owners: Mapping[Tensor, int]
    index: int
    count: int
    device: torch.device

    @classmethod
    def of(cls, model: nn.Module, index: int, count: int, device: torch.device) -> Sharding:
        """Trained tensors of `model`, the largest first, each to the process that has least so far."""
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        owners: dict[Tensor, int] = {}
        loads = [0] * count
        for parameter in sorted(trained, key=lambda one: -one.numel()):
            owners[parameter] = loads.index(min(loads))
            loads[owners[parameter]] += parameter.numel()
        return cls(owners, index, count, device)

    def mine(self, tensor: Tensor) -> bool:
        """Whether this process keeps what belongs to `tensor`; of one without an owner, every process does."""
        return self.owners.get(tensor, self.index) == self.index

    @torch.no_grad()
    def spread(self) -> None:
        """Every process takes over each tensor from its owner."""
        # As they lie in memory: a channels-last weight is not contiguous, and the same everywhere.
        flat = [(own.detach().as_strided((own.numel(),), (1,)), source) for own, source in self.owners.items()]
        for work in [distributed.broadcast(values, source, async_op=True) for values, source in flat]:
            assert work is not None
            work.wait()

    def gathered(self, own: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
        """The tensors of all processes by their names, in the host's memory; every process takes part, and one without
        `keep` gets none. One tensor at a time is on the device."""
        found = {}
        for source in range(self.count):
            for name, value in self._from(source, own):
                if keep:
                    found[name] = value.cpu()
        return found

    def _from(self, source: int, own: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        told = [[name, list(value.shape), dtype_name(value.dtype)] for name, value in own.items()]
        for name, shape, dtype in self._said(source, told):
            if source == self.index:
                value = own[name].to(self.device).contiguous()
            else:
                value = torch.empty(shape, dtype=getattr(torch, dtype), device=self.device)
            distributed.broadcast(value, source)
            yield name, value

    def _said(self, source: int, told: list) -> list:
        """What `source` tells of its tensors."""
        letters = torch.frombuffer(bytearray(json.dumps(told).encode()), dtype=torch.uint8).to(self.device)
        length = torch.tensor(len(letters), device=self.device)
        distributed.broadcast(length, source)
        if source != self.index:
            letters = torch.empty(int(length), dtype=torch.uint8, device=self.device)
        distributed.broadcast(letters, source)
        return list(json.loads(bytes(letters.tolist())))
