"""Which of the denoiser calls that a bank costs stay: all of them, in memory where it holds them, else on disk."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path

from diffcompress.recipe import BankSection
from diffcompress.records import units

# Calls are read from disk where they would be more in memory.
TRAJECTORY_BYTES = 2 << 30
SHARD_SIZE = 128
# Of a shard of calls that stay on disk; the drawing process holds one, and loses one when it is killed.
SHARD_BYTES = 512 << 20
# Open files of a bank.
MOST_SHARDS = 256
DISK_SHARE = 0.5
# Smaller students learn as much from few samples that are used often (docs/benchmarks.md).
LEAST_RATIO = 0.1


@dataclass(frozen=True)
class Kept:
    """positions: denoiser calls of each sample; half: as half-precision rows that stay on disk, else float32 in memory;
    shard_size: samples of a file; most_bytes: of all calls, those of samples that a bank grows by among them."""

    positions: int
    half: bool
    shard_size: int
    most_bytes: int

    @classmethod
    def in_memory(cls, sample_shape: tuple[int, ...], section: BankSection) -> Kept:
        """As many of each sample's calls as memory holds, one at least."""
        held = TRAJECTORY_BYTES // (call_bytes(sample_shape) * section.num_samples)
        return cls(max(1, min(section.sampler_steps, held)), False, SHARD_SIZE, TRAJECTORY_BYTES)

    @classmethod
    def of(cls, sample_shape: tuple[int, ...], section: BankSection, folder: Path) -> Kept:
        """All calls in memory where that holds them; else as many as `bank.stored_gib` and half of the free disk of
        `folder` hold, where that is more of them."""
        memory = cls.in_memory(sample_shape, section)
        if memory.positions == section.sampler_steps:
            return memory
        there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        most = int(min(section.stored_gib * 2**30, DISK_SHARE * shutil.disk_usage(there).free))
        one = call_bytes(sample_shape, half=True)
        positions = min(section.sampler_steps, most // (one * section.num_samples))
        if positions <= memory.positions:
            return memory
        size = max(SHARD_BYTES // (one * positions), -(-section.num_samples // MOST_SHARDS), 1)
        return cls(positions, True, min(SHARD_SIZE, size), most)

    def key(self, key: str) -> str:
        """What shards of the bank of `key` say that they are of; those in memory say the key alone."""
        return f"{key} {self.positions}-{self.shard_size}-{self.most_bytes}" if self.half else key

    @classmethod
    def told(cls, by: str, sample_shape: tuple[int, ...], section: BankSection) -> Kept:
        """Of a bank that was begun, from what `key` made."""
        numbers = by.split()[1:]
        if not numbers:
            return cls.in_memory(sample_shape, section)
        positions, shard_size, most_bytes = map(int, numbers[0].split("-"))
        return cls(positions, True, shard_size, most_bytes)

    def sentence(self, sample_shape: tuple[int, ...], section: BankSection) -> str:
        """What stays, for a person."""
        which = "all" if self.positions == section.sampler_steps else f"{self.positions} of"
        calls = f"{which} {section.sampler_steps} denoiser calls of each of the bank's samples stay"
        if not self.half:
            return f"{calls} in memory"
        size = call_bytes(sample_shape, half=True) * self.positions * section.num_samples
        return f"{calls} on disk, in half precision: {units.size(size)} at most"

    def growth(
        self, calls: int, ratio: float, sample_shape: tuple[int, ...], section: BankSection, per_step: int
    ) -> int:
        """Samples that a bank of `section.num_samples` grows by, so that there is one for each `sampler_steps` of a
        run's `calls`, as far as bytes are enough; whole shards. ratio: of the student; per_step: calls of the denoiser
        in a step of sampling.

        None where the bank must not grow, nor for students below `LEAST_RATIO` where a stored call costs more than a
        prediction of noised samples: with guidance, of whose two calls one is kept, and where not all of a sample's
        calls are.
        """
        dear = self.positions < section.sampler_steps or per_step > 1
        if not section.grow or (dear and ratio < LEAST_RATIO):
            return 0
        more = math.ceil(calls / section.sampler_steps) - section.num_samples
        most = self.most_bytes // (call_bytes(sample_shape, half=self.half) * self.positions) - section.num_samples
        return max(0, min(math.ceil(more / self.shard_size), most // self.shard_size)) * self.shard_size


def call_bytes(sample_shape: tuple[int, ...], *, half: bool = False) -> int:
    """Bytes of one stored denoiser call at most: input and prediction, a learned variance with it."""
    return 3 * (2 if half else 4) * math.prod(sample_shape)
