"""Teacher targets: a prediction of the teacher for (noisy input, timestep, conditioning), fresh or reused.

Reused targets live in pools. Pool k holds `pool_size` predictions (fewer of large samples), each used `reuse` times in
shuffled order, then the next pool takes its place: the teacher's share of a step's cost falls by the reuse factor. Up
to `trajectory_share` of a pool comes from the bank's trajectories, which cost nothing, as far as these suffice. All
draws follow from integers (seed, pool, entry), so any step of any process can be had at any time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from diffcompress.bank.bank import Bank
from diffcompress.bank.batch import Ahead, Batch
from diffcompress.bank.keeping import call_bytes
from diffcompress.bank.shards import Tensors, end_to_end, make_shards, shards
from diffcompress.noise import generator, levels, streams
from diffcompress.pipeline.load import LoadedPipeline
from diffcompress.pipeline.stored_rows import gathered
from diffcompress.recipe import TargetsSection
from diffcompress.records import fingerprints
from diffcompress.records.run_files import discard
from diffcompress.runtime import Progress, Runtime

SHARD_SIZE = 512
# Of a pool at most, on disk and in memory, however large the teacher's samples are.
POOL_BYTES = 4 << 30
TAYLOR_BATCHES, TAYLOR_BATCH_SIZE = 8, 32
# Before the names of conditioning tensors, among those that go to the device.
CONDITIONING = "conditioning."


def distinct(section: TargetsSection, uses: int) -> int:
    """How many predictions of the teacher `uses` samples in batches need, each used `reuse` times."""
    return -(-uses // section.reuse)


def may_grow(section: TargetsSection) -> bool:
    """Whether stored calls, of more samples or used more often, may take the place of all new predictions."""
    return section.reuse > 1 and section.trajectory_share == 1


class Targets:
    """Batches for every step of a run. `batch(step)` is this process's share of the global batch of that step."""

    def __init__(
        self,
        folder: Path,
        teacher: LoadedPipeline,
        bank: Bank,
        section: TargetsSection,
        *,
        seed: int,
        batch_size: int,
        num_steps: int,
        runtime: Runtime,
        progress: Progress,
        keep: bool = False,
        with_diffusion: bool = True,
        alone: bool = False,
    ) -> None:
        """keep: leave used pools on disk, for other students of the same recipe. with_diffusion: batches have a
        diffusion target, which costs more than the rest of them. alone: stored calls are all that there is, however
        often each is used (`may_grow`)."""
        self.folder, self.teacher, self.bank, self.section = folder, teacher, bank, section
        self.seed, self.batch_size, self.runtime, self.progress = seed, batch_size, runtime, progress
        self.keep, self.with_diffusion, self.alone = keep, with_diffusion, alone
        uses = max(1, num_steps * batch_size)  # a run of no steps has no use for targets, but is no error
        share = 1.0 if alone else min(section.trajectory_share, bank.num_trajectory / distinct(section, uses))
        # Stored calls cost nothing: where they suffice, all of them are used rather than few of them often.
        self.reuse = -(-uses // bank.num_trajectory) if share == 1 else section.reuse
        wanted = min(section.pool_size, POOL_BYTES // call_bytes(teacher.sample_shape), -(-uses // self.reuse))
        self.pool_size = max(1, -(-wanted // batch_size)) * batch_size
        self.num_trajectory = round(self.pool_size * share)
        self._pool: tuple[int, Tensors] | None = None
        self._order: tuple[tuple[int, int], Tensor] | None = None
        self._pinned = runtime.device.type == "cuda"
        self._ahead = Ahead(self._made, self._soon, runtime.device)

    def batch(self, step: int) -> Batch:
        """This process's share of the batch of `step`.

        Raises RunStopped or RunInterrupted while a new pool is being made.
        """
        return self._batch(self._ahead.take(step))

    def drawn(self, step: int) -> Tensors:
        """This process's share of the entries of one batch, with new predictions of the teacher's where steps have
        any."""
        if self.alone:
            return self.bank.calls(self._trajectory_order()[torch.tensor(self._share)])
        return self._predicted(streams.FRESH_ENTRY, step, self._share)

    def assembled(self, entries: Tensors) -> Batch:
        """The batch of all `entries`."""
        given = self._given(entries, torch.arange(len(entries["index"])))
        return self._batch({name: value.to(self.runtime.device) for name, value in given.items()})

    @property
    def _share(self) -> range:
        return range(self.batch_size)[self.runtime.share(self.batch_size)]

    def _place(self, step: int) -> tuple[int, int, int]:
        """Where the entries of a step are: number of the pool, epoch and position in it."""
        steps_per_epoch = self.pool_size // self.batch_size
        number, within = divmod(step, steps_per_epoch * self.reuse)
        return number, *divmod(within, steps_per_epoch)

    def _soon(self, step: int) -> bool:
        """Whether what the host does for a step takes neither the teacher nor other processes."""
        return self.section.reuse == 1 or (self._pool is not None and self._pool[0] == self._place(step)[0])

    def _made(self, step: int) -> Tensors:
        """The host's part of a batch."""
        if self.section.reuse == 1:
            entries = self._noised(streams.FRESH_ENTRY, step, self._share)
            return self._given(entries, torch.arange(len(self._share)))
        number, epoch, position = self._place(step)
        pool = self._load_pool(number)
        if self._order is None or self._order[0] != (number, epoch):
            own = generator(self.seed, streams.POOL_ORDER, number, epoch)
            self._order = (number, epoch), torch.randperm(self.pool_size, generator=own)
        whole = self._order[1][position * self.batch_size : (position + 1) * self.batch_size]
        return self._given(pool, whole[self.runtime.share(self.batch_size)])

    def _given(self, entries: Tensors, rows: Tensor) -> Tensors:
        """What goes to the device: rows of `entries`, their conditioning, and their diffusion target if wanted."""
        picked = {name: gathered(value, rows, pinned=self._pinned) for name, value in entries.items()}
        index, condition = picked.pop("index"), picked.pop("condition")
        if self.with_diffusion:
            picked["diffusion_target"] = self._diffusion_target(picked["noisy"], picked["timestep"], index)
        conditioning = self.bank.conditions.rows(condition, pinned=self._pinned)
        return picked | {CONDITIONING + name: value for name, value in conditioning.items()}

    def _batch(self, there: Tensors) -> Batch:
        """From tensors on the device; a prediction that none of them holds is asked for now."""
        given = dict(there)
        conditioning = {n.removeprefix(CONDITIONING): given.pop(n) for n in there if n.startswith(CONDITIONING)}
        if "prediction" not in given:
            given["prediction"] = self._asked(given["noisy"], given["timestep"], conditioning)
        target = given.pop("diffusion_target", None)
        return Batch(**given, diffusion_target=target, conditioning=conditioning)

    def _diffusion_target(self, noisy: Tensor, timestep: Tensor, index: Tensor) -> Tensor:
        clean = self.bank.clean[index]
        signal, sigma = self.teacher.noise.signal_and_noise(timestep, clean)
        return self.teacher.noise.target(clean, (noisy - signal * clean) / sigma, timestep)

    def _load_pool(self, number: int) -> Tensors:
        if self._pool is None or self._pool[0] != number:
            self._pool = None
            forward = self.pool_size - self.num_trajectory
            spread = "" if self.section.levels == "timesteps" else "-by-noise"
            folder = self.folder / f"pool-{number:05d}-of-{forward}-{self.section.timesteps}{spread}"
            key = fingerprints.of_json(
                [self.teacher.fingerprint, self.bank.key, self.bank.null_share, self.seed, folder.name]
            )
            if forward:
                make_shards(
                    folder,
                    forward,
                    SHARD_SIZE,
                    lambda r: self._predicted(streams.POOL_ENTRY, number, r),
                    self.runtime,
                    self.progress,
                    "targets",
                    key,
                )
            if self.runtime.is_main and not self.keep:
                for old in self.folder.glob("pool-*"):
                    if old.name < folder.name:
                        discard(old)
            self._pool = number, end_to_end(self._parts(number, folder, forward, key), self.pool_size)
        return self._pool[1]

    def _parts(self, number: int, folder: Path, forward: int, key: str) -> Iterator[Tensors]:
        if self.num_trajectory:
            yield self._from_trajectories(number)
        yield from shards(folder, forward, SHARD_SIZE, key)

    def _from_trajectories(self, number: int) -> Tensors:
        """Stored calls for pool `number`: consecutive pools walk through one shuffled order of all of them."""
        positions = (number * self.num_trajectory + torch.arange(self.num_trajectory)) % self.bank.num_trajectory
        return self.bank.calls(self._trajectory_order()[positions])

    def _trajectory_order(self) -> Tensor:
        """All stored calls in one order; by noise levels, some of them several times."""
        count, own = self.bank.num_trajectory, generator(self.seed, streams.TRAJECTORY_ORDER)
        if self.section.levels == "timesteps":
            return torch.randperm(count, generator=own)
        timestep = gathered(self.bank.trajectory["timestep"], torch.arange(count))
        heights = levels.weights(self.teacher.noise, timestep).cumsum(0)
        return torch.searchsorted(heights, heights[-1] * torch.rand(count, generator=own, dtype=torch.float64))

    def _predicted(self, stream: int, number: int, entries: range) -> Tensors:
        """Entries of freshly noised bank samples, with the teacher's predictions; on the CPU."""
        rows, device = self._noised(stream, number, entries), self.teacher.device
        conditioning = {name: value.to(device) for name, value in self.bank.conditions.rows(rows["condition"]).items()}
        prediction = self._asked(rows["noisy"].to(device), rows["timestep"].to(device), conditioning)
        return rows | {"prediction": prediction.cpu()}

    def _noised(self, stream: int, number: int, entries: range) -> Tensors:
        """Freshly noised bank samples; entry e follows from (seed, stream, number, e)."""
        index, noise, timestep, nulls = [], [], [], []
        for entry in entries:
            # Antithetic pairs share a draw: entries 2j and 2j+1 take timesteps t and T-1-t.
            pair = entry // 2 if self.section.timesteps == "antithetic" else entry
            drawn = self.teacher.noise.draw_timesteps(
                2, generator(self.seed, stream, number, pair, 1), self.section.timesteps
            )
            own = generator(self.seed, stream, number, entry)
            timestep.append(drawn[entry % 2 if self.section.timesteps == "antithetic" else 0])
            index.append(torch.randint(self.bank.num_samples, (), generator=own))
            noise.append(torch.randn(self.teacher.sample_shape, generator=own))
            nulls.append(torch.rand((), generator=own))
        rows = {"index": torch.stack(index), "timestep": torch.stack(timestep)}
        if self.section.levels == "noise":
            rows["timestep"] = levels.spread(self.teacher.noise, rows["timestep"])
        rows["condition"] = self._with_nulls(self.bank.condition[rows["index"]], torch.stack(nulls))
        noisy = self.teacher.noise.noisy(self.bank.clean[rows["index"]], torch.stack(noise), rows["timestep"])
        return rows | {"noisy": noisy}

    @torch.no_grad()
    def _asked(self, noisy: Tensor, timestep: Tensor, conditioning: Mapping[str, Tensor]) -> Tensor:
        """The teacher's predictions, in as many calls as memory asks for."""
        predictions = []
        for start in range(0, len(noisy), self.bank.batch_size):
            part = slice(start, start + self.bank.batch_size)
            given = {name: value[part] for name, value in conditioning.items()}
            predictions.append(self.teacher.predict_all(noisy[part], timestep[part], given))
        return torch.cat(predictions)

    def _with_nulls(self, condition: Tensor, draw: Tensor) -> Tensor:
        """The recipe's share of entries with the null conditioning, so that guidance works on the student too."""
        null = self.bank.conditions.null
        return condition if null is None else torch.where(draw < self.bank.null_share, null, condition)


def taylor_batches(
    teacher: LoadedPipeline, bank: Bank, seed: int, numbers: range = range(TAYLOR_BATCHES)
) -> Iterator[tuple[Tensor, Tensor, dict[str, Tensor], Tensor]]:
    """A few batches (noisy, timestep, conditioning, diffusion target) of the bank, for ranking channels; those of some
    `numbers`.

    Smaller ones for teachers whose activations would not fit otherwise; one at a time is in memory.
    """
    size = min(TAYLOR_BATCH_SIZE, bank.batch_size)
    for number in numbers:
        own = generator(seed, streams.TAYLOR, number)
        index = torch.randint(bank.num_samples, (TAYLOR_BATCH_SIZE,), generator=own)
        clean, noise = bank.clean[index], torch.randn(TAYLOR_BATCH_SIZE, *teacher.sample_shape, generator=own)
        timestep = teacher.noise.draw_timesteps(TAYLOR_BATCH_SIZE, own, "antithetic")
        conditioning = {n: v.to(teacher.device) for n, v in bank.conditions.rows(bank.condition[index]).items()}
        noisy, target = teacher.noise.noisy(clean, noise, timestep), teacher.noise.target(clean, noise, timestep)
        for start in range(0, TAYLOR_BATCH_SIZE, size):
            rows = slice(start, start + size)
            part = {name: value[rows] for name, value in conditioning.items()}
            device = teacher.device
            yield noisy[rows].to(device), timestep[rows].to(device), part, target[rows].to(device)


def refit_batch(teacher: LoadedPipeline, bank: Bank, seed: int, size: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """One batch (noisy, timestep, conditioning) of the bank at noise levels spread evenly, on the teacher's device."""
    own = generator(seed, streams.REFIT)
    index = torch.randint(bank.num_samples, (size,), generator=own)
    clean, noise = bank.clean[index], torch.randn(size, *teacher.sample_shape, generator=own)
    timestep = teacher.noise.at((torch.arange(size) + torch.rand(size, generator=own)) / size)
    noisy, device = teacher.noise.noisy(clean, noise, timestep), teacher.device
    conditioning = {name: value.to(device) for name, value in bank.conditions.rows(bank.condition[index]).items()}
    return noisy.to(device), timestep.to(device), conditioning
