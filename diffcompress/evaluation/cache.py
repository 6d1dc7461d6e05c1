"""Samples drawn once: features, total variation and a few images, kept under a key of what they follow from.

An entry is one safetensors file `<key>.safetensors` with a row per sample; while it is made, its batches lie in
`<key>-<num_samples>/`, so a kill loses one at most. The demo teacher's entry ships with the package.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from diffcompress.errors import DamagedError
from diffcompress.evaluation.failed import total_variation
from diffcompress.evaluation.features import FeatureSpace
from diffcompress.pipeline.load import LoadedPipeline
from diffcompress.pipeline.sampling import automatic_batch_size, sample
from diffcompress.records.protocol import Protocol
from diffcompress.records.run_folder import discard, read_tensors, write_atomically
from diffcompress.runtime import Progress, StopRequest
from diffcompress.sources.reference import DEMO_FOLDER

NUM_IMAGES = 128
Tensors = dict[str, Tensor]
SHIPPED_FOLDER = DEMO_FOLDER / "samples"


@dataclass(frozen=True)
class Drawn:
    """Samples 0..N-1 of one model. images: the first `NUM_IMAGES` at most, `[n, C, *spatial]`, latents for latent
    models; variation: `[N]`; features: `[N, D]`, or None without a feature space; pixels: what `images` decode to;
    clip: `[N, D]`, where CLIP stands beside the feature space."""

    images: Tensor
    variation: Tensor
    features: Tensor | None
    pixels: Tensor
    clip: Tensor | None = None

    @property
    def num_broken(self) -> int:
        """Samples that are not finite."""
        return int(torch.isinf(self.variation).sum())


@dataclass(frozen=True)
class SampleCache:
    """folder: where new entries go; ready: folders that are only read."""

    folder: Path
    stop: StopRequest
    progress: Progress
    ready: tuple[Path, ...] = (SHIPPED_FOLDER,)

    def draw(self, pipeline: LoadedPipeline, protocol: Protocol, space: FeatureSpace | None, task: str) -> Drawn:
        """The protocol's samples of `pipeline`, drawn where no cache holds them.

        Raises RunStopped or RunInterrupted between batches; the same call goes on.
        """
        key, count = entry_key(weights_key(pipeline), protocol), protocol.num_samples
        tensors = self._find(key, count) or self._make(key, count, pipeline, protocol, space, task)
        features = tensors["features"][:count] if "features" in tensors else None
        images = tensors["images"][: min(count, NUM_IMAGES)].float()
        pixels = tensors["pixels"][: len(images)].float() if "pixels" in tensors else images
        clip = tensors["clip"][:count] if "clip" in tensors else None
        return Drawn(images, tensors["variation"][:count], features, pixels, clip)

    def _find(self, key: str, count: int) -> Tensors | None:
        """An entry of at least `count` rows: sample i follows from (seed, i), so a longer entry serves as well."""
        for folder in (self.folder, *self.ready):
            path = folder / f"{key}.safetensors"
            if not path.is_file():
                continue
            try:
                tensors = read_tensors(path, finite=False)  # of a broken student they are not
            except DamagedError as error:
                self.progress.warn(f"{error.message}; samples are drawn again")
                continue
            if len(tensors["variation"]) >= count:
                return tensors
        return None

    def _make(
        self, key: str, count: int, pipeline: LoadedPipeline, protocol: Protocol, space: FeatureSpace | None, task: str
    ) -> Tensors:
        folder = self.folder / f"{key}-{count}"
        batch_size, batches, done = automatic_batch_size(pipeline), [], 0
        while done < count:
            path = folder / f"{done:08d}.safetensors"
            if not path.exists():
                _save(path, _rows(pipeline, protocol, space, range(done, min(done + batch_size, count))))
            batches.append(read_tensors(path, finite=False))
            done += len(batches[-1]["variation"])
            self.progress.update(task, done, count)
            self.stop.raise_if_set()
        tensors = _end_to_end(batches)
        made = {
            "model": pipeline.reference.name,
            "weights": weights_key(pipeline),
            "protocol": json.dumps(protocol.to_json()),
        }
        _save(self.folder / f"{key}.safetensors", tensors, made)
        discard(folder)
        return tensors


def weights_key(pipeline: LoadedPipeline) -> str:
    """The fingerprint of a loaded pipeline; of one that was never written, a hash of its configs and tensors."""
    if pipeline.fingerprint:
        return pipeline.fingerprint
    digest = hashlib.sha256(
        json.dumps([dict(pipeline.config), pipeline.reference.scheduler], sort_keys=True, default=str).encode()
    )
    for name, value in sorted(pipeline.denoiser.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


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
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]


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
        if space.clip is not None:
            rows["clip"] = space.clip.features(finite)
    return rows


def _pixels(pipeline: LoadedPipeline, images: Tensor) -> Tensor:
    return images if pipeline.codec is None or not len(images) else pipeline.codec.decode(images.nan_to_num())


def _end_to_end(parts: list[Tensors]) -> Tensors:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _save(path: Path, tensors: Tensors, metadata: dict[str, str] | None = None) -> None:
    whole = {name: value.contiguous() for name, value in tensors.items()}
    write_atomically(path, lambda part: save_file(whole, part, metadata=metadata))
