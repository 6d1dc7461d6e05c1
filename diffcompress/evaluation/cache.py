"""Samples drawn once: features, total variation and a few images, kept under a key of what they follow from.

An entry is one safetensors file `<key>.safetensors` with a row per sample; while it is made, its batches lie in
`<key>-<num_samples>/` (`<key>-<before>-<num_samples>/` where an entry gets more rows), so a kill loses one of each
process at most. The demo teacher's entry ships with the package.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from diffcompress.bank.shards import make_shards, shard_path, shards
from diffcompress.evaluation.features import FeatureSpace
from diffcompress.evaluation.variation import total_variation
from diffcompress.pipeline.load import LoadedPipeline
from diffcompress.pipeline.sampling import automatic_batch_size, sample
from diffcompress.records import fingerprints
from diffcompress.records.protocol import Protocol
from diffcompress.records.run_files import discard, kept, read_tensors, write_tensors
from diffcompress.runtime import Progress, Runtime
from diffcompress.sources.reference import DEMO_FOLDER

NUM_IMAGES = 128
BESIDE = ("clip", "pick")
Tensors = dict[str, Tensor]
SHIPPED_FOLDER = DEMO_FOLDER / "samples"


@dataclass(frozen=True)
class Drawn:
    """Samples 0..N-1 of one model. images: the first `NUM_IMAGES` at most, `[n, C, *spatial]`, latents for latent
    models; variation: `[N]`; features: `[N, D]`, or None without a feature space; pixels: what `images` decode to;
    beside: `[N, D]` in each of the spaces that stand beside the feature space, by name."""

    images: Tensor
    variation: Tensor
    features: Tensor | None
    pixels: Tensor
    beside: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def num_broken(self) -> int:
        """How many samples are not finite."""
        return int(torch.isinf(self.variation).sum())


@dataclass(frozen=True)
class SampleCache:
    """folder: where new entries go, which all processes of `runtime` make together; ready: folders that are only
    read."""

    folder: Path
    runtime: Runtime
    progress: Progress
    ready: tuple[Path, ...] = (SHIPPED_FOLDER,)

    def draw(self, pipeline: LoadedPipeline, protocol: Protocol, space: FeatureSpace | None, task: str) -> Drawn:
        """The protocol's samples of `pipeline`, drawn where no cache holds them.

        Raises RunStopped or RunInterrupted between batches; the same call goes on.
        """
        key, count = entry_key(pipeline.fingerprint, protocol), protocol.num_samples
        tensors = self._longest(key)
        if tensors is None or len(tensors["variation"]) < count:
            tensors = self._make(key, count, tensors, pipeline, protocol, space, task)
        features = tensors["features"][:count] if "features" in tensors else None
        images = tensors["images"][: min(count, NUM_IMAGES)].float()
        pixels = tensors["pixels"][: len(images)].float() if "pixels" in tensors else images
        beside = {name: tensors[name][:count] for name in BESIDE if name in tensors}
        return Drawn(images, tensors["variation"][:count], features, pixels, beside)

    def _longest(self, key: str) -> Tensors | None:
        """The entry of most rows: sample i follows from (seed, i), so a longer entry serves as well, and a shorter one
        begins it."""
        # Those of a broken student are not finite.
        read = partial(read_tensors, of=key, finite=False)
        found = [kept(self.folder / f"{key}.safetensors", read, self.progress.warn)]
        ready = (folder / f"{key}.safetensors" for folder in self.ready)
        found += [read_tensors(path, finite=False) for path in ready if path.is_file()]
        return max(filter(None, found), key=lambda tensors: len(tensors["variation"]), default=None)

    def _make(
        self,
        key: str,
        count: int,
        before: Tensors | None,
        pipeline: LoadedPipeline,
        protocol: Protocol,
        space: FeatureSpace | None,
        task: str,
    ) -> Tensors:
        """An entry of `count` rows, those `before` first."""
        there = 0 if before is None else len(before["variation"])
        folder, runtime, missing = self.folder / f"{key}-{count}", self.runtime, count - there
        if there:
            folder = self.folder / f"{key}-{there}-{count}"
        share = -(-missing // runtime.count)
        size = runtime.least(self._begun(folder) or min(automatic_batch_size(pipeline), share))

        def make(rows: range) -> Tensors:
            return _rows(pipeline, protocol, space, range(there + rows.start, there + rows.stop))

        make_shards(folder, missing, size, make, runtime, self.progress, task, key, finite=False)
        parts = shards(folder, missing, size, key, finite=False)
        tensors = _end_to_end([*([] if before is None else [before]), *parts])
        runtime.wait()
        if runtime.is_main:
            made = {
                "of": key,
                "model": pipeline.reference.name,
                "weights": pipeline.fingerprint,
                "protocol": json.dumps(protocol.to_json()),
            }
            write_tensors(self.folder / f"{key}.safetensors", tensors, made)
            discard(folder)
        runtime.wait()
        return tensors

    def _begun(self, folder: Path) -> int | None:
        """Samples in a batch of an entry that was begun: as then, whatever memory is free by now."""
        first = kept(shard_path(folder, 0), partial(read_tensors, finite=False), self.progress.warn)
        return None if first is None else len(first["variation"])


def is_shipped(weights: str, protocol: Protocol) -> bool:
    """Whether the package brings samples of these weights: those of the demo teacher."""
    return (SHIPPED_FOLDER / f"{entry_key(weights, protocol)}.safetensors").is_file()


def entry_key(weights: str, protocol: Protocol) -> str:
    """What samples and their features follow from: weights, sampler, seed, extractor, size."""
    parts: list[object] = [
        weights,
        protocol.sampler,
        protocol.sampler_steps,
        protocol.eta,
        protocol.seed,
        protocol.extractor,
        protocol.revision,
    ]
    parts.append(list(protocol.sample_shape))
    if protocol.guidance != 1.0 or protocol.conditions is not None:
        parts += [protocol.guidance, protocol.conditions]
    if protocol.clip is not None:
        parts.append(protocol.clip)
    if protocol.pick is not None:
        parts.append(["pick", protocol.pick])
    if protocol.precision != "float32":
        parts.append(protocol.precision)
    return fingerprints.of_json(parts)[:24]


def _rows(pipeline: LoadedPipeline, protocol: Protocol, space: FeatureSpace | None, indices: range) -> Tensors:
    images = sample(
        pipeline,
        list(indices),
        seed=protocol.sampling_seed,
        num_steps=protocol.sampler_steps,
        eta=protocol.eta,
        guidance=protocol.guidance,
    )
    # Only the first are looked at, features take all; decoding is the dearest part of a small latent model.
    kept = max(0, NUM_IMAGES - indices.start)
    pixels = _pixels(pipeline, images if space is not None else images[:kept])
    rows = {"variation": total_variation(pixels if space is not None else images)}
    # Kept in half precision and read back so: fresh and cached results are the same. Later shards keep none.
    rows["images"] = images[:kept].half()
    if pipeline.codec is not None:
        rows["pixels"] = pixels[:kept].half() if kept else torch.empty(0).half()
    if space is not None:
        finite = pixels.nan_to_num()
        rows["features"] = space.features(finite)
        rows |= {name: one.features(finite) for name, one in space.beside.items()}
    return rows


def _pixels(pipeline: LoadedPipeline, images: Tensor) -> Tensor:
    return images if pipeline.codec is None or not len(images) else pipeline.codec.decode(images.nan_to_num())


def _end_to_end(parts: list[Tensors]) -> Tensors:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
