"""The bank: clean samples, drawn from the teacher itself (default) or the user's own, and the trajectories they left.

A trajectory entry is one denoiser call of the teacher's own sampling: (noisy, timestep, prediction, sample index,
condition). It costs nothing beyond sampling the bank.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffcompress.bank import drawing
from diffcompress.bank.drawing import Table
from diffcompress.bank.keeping import SHARD_SIZE, Kept
from diffcompress.bank.shards import Tensors, are_of, first_of, make_shards, read_shards
from diffcompress.errors import UsageError
from diffcompress.images import images
from diffcompress.pipeline.conditions import Conditions
from diffcompress.pipeline.load import LoadedPipeline
from diffcompress.pipeline.sampling import automatic_batch_size
from diffcompress.pipeline.stored_rows import StoredRows, gathered
from diffcompress.recipe import BankSection
from diffcompress.records import fingerprints, layout, shapes
from diffcompress.records.run_files import discard, kept, read_json, write_checked
from diffcompress.runtime import Progress, Runtime

# Times as large as half of the samples are: no sample, but what sampling came to when it went wrong.
FAR = 8


@dataclass(frozen=True)
class Bank:
    """What a student learns from.

    clean `[N, C, *spatial]`; condition `[N]`: the row of `conditions` of each; trajectory: noisy, timestep, prediction,
    index (of the clean sample), condition (row, the null one where guidance asked for it) with one row per stored
    denoiser call (empty for the user's own images), in memory or, in half precision, on disk; key: content key; kept:
    what stays of a sample's calls; batch_size: rows of a teacher call;
    null_share: of targets, see the recipe.
    """

    clean: Tensor
    condition: Tensor
    conditions: Conditions
    trajectory: Mapping[str, Table]
    key: str
    batch_size: int
    null_share: float = 0.0
    kept: Kept | None = None

    @property
    def num_samples(self) -> int:
        return len(self.clean)

    @property
    def num_trajectory(self) -> int:
        return self.trajectory["timestep"].shape[0] if self.trajectory else 0

    def calls(self, rows: Tensor) -> Tensors:
        """Of the stored calls `rows` `[B]` what `trajectory` holds, in memory and in float32."""
        found = {name: gathered(value, rows) for name, value in self.trajectory.items()}
        return {name: value.float() if value.dtype == torch.half else value for name, value in found.items()}


def fill(
    folder: Path,
    teacher: LoadedPipeline,
    section: BankSection,
    seed: int,
    own: images.Images | None,
    runtime: Runtime,
    progress: Progress,
) -> Bank:
    """The bank in `folder`, made or completed. Sample i follows from (seed, i) alone, whichever process draws it.

    own: the user's images in place of the teacher's samples. Raises UsageError when they are not those that the bank
    was begun with; RunStopped or RunInterrupted between shards.
    """
    if own is not None:
        return _from_images(folder, teacher, section, own, runtime, progress)
    asked = section.model_dump(exclude={"grow", "stored_gib"})  # which change nothing of what a bank begins with
    key = fingerprints.of_json([teacher.fingerprint, asked, seed, teacher.sample_shape, teacher.conditions.drawn_texts])
    _mend_record(folder, key, runtime, progress)
    if _record(folder).get("key", key) != key:
        raise UsageError(
            f"the bank in {folder} was drawn with other prompts, another seed, teacher or recipe",
            "choose another --output, or --overwrite to begin anew",
        )
    if section.guidance != 1 and teacher.conditions.null is None:
        progress.note(
            f"bank.guidance {section.guidance:g} does nothing: '{teacher.reference.id}' has no null conditioning"
        )
    told = _calls_told(folder, key, teacher, section)
    batch_size = _settled_batch_size(folder, teacher, runtime, key=key, source=teacher.reference.id, **told)
    keeping = Kept.told(_record(folder).get("calls", key), teacher.sample_shape, section)
    if keeping.half:
        progress.note(keeping.sentence(teacher.sample_shape, section))
    samples = range(section.num_samples)
    clean, condition, trajectory = drawing.drawn(
        folder, samples, key, keeping, batch_size, teacher, section, seed, runtime, progress
    )
    _look_at(clean, progress)
    return Bank(clean, condition, teacher.conditions, trajectory, key, batch_size, section.null_share, keeping)


def _look_at(clean: Tensor, progress: Progress) -> None:
    """Tell of samples `[N, C, *spatial]` that are nothing like the others: a student learns them all the same."""
    sizes = clean.float().flatten(1).square().mean(1).sqrt()
    if count := int((sizes > FAR * sizes.median()).sum()):
        progress.warn(
            f"{count} of the bank's {len(clean):,} samples are more than {FAR} times as large as half of them are: the "
            "teacher's sampling goes wrong there, and its student learns that too; look at samples of its own pipeline"
        )


def _calls_told(folder: Path, key: str, teacher: LoadedPipeline, section: BankSection) -> dict[str, str]:
    """What the record of a bank says of the calls that stay: as shards that are there have them, else as disk and
    memory allow; nothing where they stay in memory."""
    told = first_of(folder).rpartition(" ")[0] if are_of(folder, key) else ""
    told = told or Kept.of(teacher.sample_shape, section, folder).key(key)
    return {} if told == key else {"calls": told}


def grown(
    bank: Bank,
    folder: Path,
    calls: int,
    ratio: float,
    teacher: LoadedPipeline,
    section: BankSection,
    seed: int,
    runtime: Runtime,
    progress: Progress,
) -> Bank:
    """`bank`, of the teacher's own samples, with more where a student of `ratio` takes `calls` (`Kept.growth`).

    Drawn beside it in `folder`, from the same streams. The bank itself where it has enough, or holds the user's images.
    Raises as `fill`.
    """
    keeping, per_step = bank.kept, drawing.calls_per_step(teacher, section)
    if keeping is None:
        return bank
    samples = keeping.growth(calls, ratio, teacher.sample_shape, section, per_step)
    if not samples:
        return bank
    more = range(bank.num_samples, bank.num_samples + samples)
    progress.note(f"the bank grows from {more.start:,} to {more.stop:,} samples, for as many steps")
    clean, condition, trajectory = drawing.drawn(
        folder / layout.GROWN, more, bank.key, keeping, bank.batch_size, teacher, section, seed, runtime, progress
    )
    return replace(
        bank,
        clean=torch.cat([bank.clean, clean]),
        condition=torch.cat([bank.condition, condition]),
        trajectory={name: _joined(value, trajectory[name]) for name, value in bank.trajectory.items()},
        key=fingerprints.of_json([bank.key, more.stop]),
    )


def _joined(one: Table, other: Table) -> Table:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.cat([one, other])
    assert isinstance(one, StoredRows) and isinstance(other, StoredRows)
    return one.followed_by(other)


def _record(folder: Path) -> dict[str, Any]:
    """What the bank in `folder` was begun with; empty where there is none."""
    file = folder / layout.BANK_RECORD
    return dict(read_json(file, kind=shapes.Bank)) if file.exists() else {}


def _mend_record(folder: Path, key: str, runtime: Runtime, progress: Progress) -> None:
    """Remove a record that cannot be read, or that tells of another bank than the one whose shards lie there."""
    if runtime.is_main:
        found = kept(folder / layout.BANK_RECORD, partial(read_json, kind=shapes.Bank), progress.warn)
        if found is not None and found["key"] != key and are_of(folder, key):
            progress.warn(f"{folder / layout.BANK_RECORD} is damaged: it tells of another bank; it is written again")
            discard(folder / layout.BANK_RECORD)
    runtime.wait()


def _settled_batch_size(folder: Path, teacher: LoadedPipeline, runtime: Runtime, **told: object) -> int:
    """Found from memory once and recorded with `told`, so that a resumed run asks its teacher in the same batches."""
    if runtime.is_main and "batch_size" not in _record(folder):
        write_checked(folder / layout.BANK_RECORD, {**told, "batch_size": automatic_batch_size(teacher)})
    runtime.wait()
    return int(_record(folder)["batch_size"])


def _from_images(
    folder: Path,
    teacher: LoadedPipeline,
    section: BankSection,
    loaded: images.Images,
    runtime: Runtime,
    progress: Progress,
) -> Bank:
    """The user's own images, through the autoencoder once for latent teachers."""
    digest = loaded.digest
    if loaded.commit is not None:
        digest = fingerprints.of_json([digest, loaded.source])
    _mend_record(folder, digest, runtime, progress)
    _check_same(folder, loaded, digest)
    told = {"key": digest, "source": loaded.source, "num_samples": len(loaded), "warnings": loaded.warnings}
    batch_size = _settled_batch_size(folder, teacher, runtime, **told)
    if teacher.codec is None:
        clean = loaded.pixels()
    else:
        key = fingerprints.of_json([teacher.fingerprint, digest])

        def encode(rows: range) -> Tensors:
            assert teacher.codec is not None
            return {"clean": teacher.codec.encode(loaded.pixels(rows.start, rows.stop))}

        make_shards(folder / key[:16], len(loaded), SHARD_SIZE, encode, runtime, progress, "latents", key)
        clean = read_shards(folder / key[:16], len(loaded), SHARD_SIZE, key)["clean"]
        if clean.shape[1:] != teacher.sample_shape:
            raise UsageError(
                f"'{loaded.source}' gives latents of shape {list(clean.shape[1:])}, the teacher takes "
                f"{list(teacher.sample_shape)}",
                "report this teacher as a bug",
            )
    return Bank(clean, loaded.condition, teacher.conditions, {}, digest, batch_size, section.null_share)


def _check_same(folder: Path, loaded: images.Images, digest: str) -> None:
    """A run that goes on must go on with the same images; raises UsageError when they have changed."""
    before = _record(folder)
    if before.get("key", digest) == digest:
        return
    source = before.get("source", "another place")
    others = f"those of {loaded.source}" if source != loaded.source else "others"
    raise UsageError(
        f"this run began with the images of {source}, and now they are {others}",
        "choose another --output, or --overwrite to begin anew",
    )
