"""GPUs that people have, and what fits them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from diffcompress.runtime import computes_bfloat16

# Of a card's memory, what is there for tensors.
USABLE = 0.93


@dataclass(frozen=True)
class Card:
    """gib: of memory; tflops: of products in half precision, dense; bfloat16: whether it multiplies in it."""

    name: str
    gib: int
    tflops: float
    bfloat16: bool = True

    @property
    def bytes(self) -> int:
        return int(USABLE * self.gib * 2**30)


# By the makers' data sheets, smallest memory first.
CARDS = (
    Card("RTX 4060", 8, 60),
    Card("RTX 3060", 12, 51),
    Card("T4", 16, 65, bfloat16=False),
    Card("L4", 24, 121),
    Card("V100 32 GB", 32, 125, bfloat16=False),
    Card("A100 40 GB", 40, 312),
    Card("L40S", 48, 362),
    Card("A100 80 GB", 80, 312),
    Card("H200", 141, 989),
    Card("B200", 180, 2250),
)


def card_of(device: torch.device) -> Card | None:
    """The one that `device` is, of which its speed is not known; None for a CPU."""
    if device.type != "cuda":
        return None
    known = torch.cuda.get_device_properties(device)
    return Card(known.name, round(known.total_memory / 2**30), math.nan, bfloat16=computes_bfloat16(device))
