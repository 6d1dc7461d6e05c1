"""Feature spaces: an extractor whose features images are compared in, and the real images' statistics there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from diffcompress.errors import UsageError
from diffcompress.evaluation import extractors
from diffcompress.evaluation.embedded import DIMENSION, IMAGE_SHAPE, Extractor
from diffcompress.evaluation.frechet import Moments
from diffcompress.pipeline.load import LoadedPipeline
from diffcompress.recipe import EvaluationSection
from diffcompress.records import layout
from diffcompress.records.fingerprints import sha256
from diffcompress.records.protocol import Protocol, versions
from diffcompress.runtime import Progress, dtype_name, exact_float32
from diffcompress.sources import teacher_card
from diffcompress.sources.reference import DEMO_FOLDER, demo_names
from diffcompress.sources.resolve import resolve
from diffcompress.sources.weights import fingerprint, weight_files

__all__ = ["DIMENSION", "Extractor", "FeatureSpace", "RealImages", "choose_space", "demo_space", "find_space"]

EXTRACTOR_FILE = DEMO_FOLDER / "extractor.safetensors"
REFERENCE_FILE = DEMO_FOLDER / "reference.safetensors"
MOST_FEATURES = 10_000
FEWEST_ASIDE = 128
_NUM_REAL = {"train": 60_000, "test": 10_000}
_CACHED_FILES = ("pt_inception-2015-12-05-6726825d.pth", "weights-inception-2015-12-05-6726825d.pth")
_CACHED_IDS = ("facebook/dinov2-large", "facebook/dinov2-base", "facebook/dinov2-small", "facebook/dinov2-giant")
_CLIP_IDS = ("openai/clip-vit-large-patch14", "openai/clip-vit-base-patch32", "openai/clip-vit-base-patch16")
_PICK_IDS = ("yuvalkirstain/PickScore_v1",)
SMALLEST_SIDE = 32


@dataclass(frozen=True)
class RealImages:
    """Real images in a feature space. moments: what Frechet distances are measured to, of `count` images; features:
    `[n, D]` of some of them, for kernel distances and neighbours; other: features of images that are not among those,
    for the real-to-real floor."""

    name: str
    digest: str
    moments: Moments
    features: Tensor
    count: int
    other: Tensor | None = None


@dataclass(frozen=True)
class FeatureSpace:
    """name: distances in it are called fd_<name> and kd_<name>; digest: SHA-256 of the extractor's file.

    extractor: a module with `features(images)`; real: the reference distances are measured to; held_out: a second one
    that nothing was ever tuned on; clip, pick: what judge images by their prompts where this space does not.
    """

    name: str
    digest: str
    extractor: Any
    real: RealImages | None = None
    held_out: RealImages | None = None
    clip: FeatureSpace | None = None
    pick: FeatureSpace | None = None

    @property
    def of_prompts(self) -> FeatureSpace | None:
        """Where images are compared with their prompts, if anywhere."""
        return self if self.name == "clip" else self.clip

    def judge_of(self, metric: str) -> FeatureSpace | None:
        """Of a metric that compares images with prompts, what computes it, if anything does."""
        if metric == "pick_score":
            return self if self.name == "pick" else self.pick
        return self.of_prompts

    @property
    def beside(self) -> dict[str, FeatureSpace]:
        """Spaces that samples get features in beside this one, by name."""
        return {name: one for name, one in (("clip", self.clip), ("pick", self.pick)) if one is not None}

    @property
    def dimension(self) -> int:
        return int(self.extractor.dimension)

    def to(self, device: torch.device) -> None:
        """Move this space's extractor, and those of the spaces beside it."""
        for one in (self, *self.beside.values()):
            one.extractor.to(device)

    @torch.no_grad()
    def features(self, images: Tensor, batch_size: int = 128) -> Tensor:
        """Features of `images` `[N, C, H, W]`: `[N, dimension]` float32 on the CPU."""
        device, parts = next(self.extractor.parameters()).device, images.split(batch_size)
        with exact_float32():
            return torch.cat([self.extractor.features(part.to(device).float()).cpu() for part in parts])

    def why_unfit(self, shape: tuple[int, ...]) -> str | None:
        """Why images of this shape (C, H, W) cannot be compared here, if so."""
        told = "x".join(map(str, shape))
        if isinstance(self.extractor, Extractor):
            return None if shape == IMAGE_SHAPE else f"it reads 1x28x28 images, the student makes {told}"
        if len(shape) != 3 or shape[0] not in (1, 3):
            return f"it reads grey or RGB images, the student makes {told}"
        return None

    def measured_to(self, images: Iterable[Tensor], digest: str) -> FeatureSpace:
        """This space with the user's images, in parts `[n, C, H, W]` in [-1, 1], as its reference."""
        features = torch.cat([self.features(part) for part in images])
        real = RealImages("data", digest, Moments.of(features), features[:MOST_FEATURES], len(features))
        return replace(self, real=real, held_out=None)


def demo_space() -> FeatureSpace:
    """The embedded feature space. Real images: Fashion-MNIST's training set; held out: its test set."""
    found = extractors.read(EXTRACTOR_FILE)
    with safe_open(REFERENCE_FILE, framework="pt") as handle:
        stamp = (handle.metadata() or {}).get("extractor_sha256")
        tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 (not a mapping)
    if stamp != found.digest:
        raise UsageError(
            f"the reference statistics {REFERENCE_FILE} were made with another extractor ({stamp}, not {found.digest})",
            "make both again with benchmarks/train_extractor.py",
        )
    train, test = (_real(tensors, split, sha256(REFERENCE_FILE)) for split in ("train", "test"))
    return FeatureSpace(
        "demo", found.digest, found.extractor, replace(train, other=test.features), replace(test, other=train.features)
    )


def find_space(teacher: LoadedPipeline | None, feature_weights: str | Path | None = None) -> FeatureSpace | None:
    """The feature space for samples of `teacher`: the one the user names, the demo's for an embedded teacher, or none.

    Raises UsageError for `feature_weights` that are missing, damaged or no known extractor.
    """
    if feature_weights is not None:
        found = extractors.read(feature_weights)
        if EXTRACTOR_FILE.is_file() and found.digest == sha256(EXTRACTOR_FILE):
            return demo_space()
        stem = "".join(c if c.isalnum() else "_" for c in Path(feature_weights).stem.lower())
        return FeatureSpace(stem if found.kind == "demo" else found.kind, found.digest, found.extractor)
    return demo_space() if teacher is not None and _is_embedded(teacher) and EXTRACTOR_FILE.is_file() else None


def choose_space(model: LoadedPipeline, progress: Progress, named: FeatureSpace | None = None) -> FeatureSpace | None:
    """`named`, else the demo's for an embedded teacher, else one that other tools have left on this machine, if any.

    Beside it come CLIP and PickScore from the Hub's local cache for RGB images of a model that takes text.
    """
    shape = image_shape(model)
    space = named or find_space(model)
    if space is None and (space := cached_space(shape, progress)) is not None:
        progress.note(f"features: {space.name}, whose weights were found on this machine")
    if not model.takes_text or not _is_rgb(shape):
        return space
    for name, ids in (("clip", _CLIP_IDS), ("pick", _PICK_IDS)):
        if space is not None and space.judge_of(f"{name}_score") is not None:
            continue
        if (found := _first_readable([*filter(extractors.cached, ids)], progress)) is None:
            continue
        judge, of = replace(found, name=name), {"clip": "CLIP", "pick": f"PickScore ({_licence(ids)})"}[name]
        progress.note(f"{name}_score: by {of}, whose weights were found on this machine")
        beside: dict[str, Any] = {name: judge}
        space = judge if space is None else replace(space, **beside)
    return space


def _licence(ids: Sequence[str]) -> str:
    """Of the first that lies in the local cache, as its card tells."""
    name, folder = next((one, folder) for one in ids if (folder := extractors.cached(one)) is not None)
    stated = teacher_card.read(folder / layout.CARD)
    told = "its card states no licence" if stated is None else stated.id or f"of its licence {stated.why}"
    return f"{name}, {told}"


def cached_space(shape: tuple[int, ...], progress: Progress) -> FeatureSpace | None:
    """Inception-v3 or DINOv2 where other tools have left their weights on this machine, for RGB images."""
    if not _is_rgb(shape):
        return None
    files = [Path(torch.hub.get_dir()) / "checkpoints" / name for name in _CACHED_FILES]
    places: list[str | Path] = [*(path for path in files if path.is_file()), *filter(extractors.cached, _CACHED_IDS)]
    return _first_readable(places, progress)


def _is_rgb(shape: tuple[int, ...]) -> bool:
    return len(shape) == 3 and shape[0] == 3 and min(shape[1:]) >= SMALLEST_SIDE


def _first_readable(places: Sequence[str | Path], progress: Progress) -> FeatureSpace | None:
    for place in places:
        try:
            found = extractors.read(place)
        except UsageError as error:  # an unfinished download, or a library that is missing: nobody asked for it
            progress.warn(f"the feature extractor {place} is not used: {error.message}")
            continue
        return FeatureSpace(found.kind, found.digest, found.extractor)
    return None


def image_shape(pipeline: LoadedPipeline) -> tuple[int, ...]:
    """Shape of the pixels that samples are compared as: decoded, for latent models with an autoencoder."""
    return pipeline.codec.pixel_shape(pipeline.sample_shape) if pipeline.codec else pipeline.sample_shape


def _is_embedded(teacher: LoadedPipeline) -> bool:
    if image_shape(teacher) != IMAGE_SHAPE:
        return False
    for name in demo_names():
        reference = resolve(f"demo:{name}")
        if fingerprint(reference, weight_files(reference.denoiser)) == teacher.fingerprint:
            return True
    return False


def _real(tensors: Mapping[str, Tensor], split: str, digest: str) -> RealImages:
    moments = Moments(tensors[f"{split}_mean"].double(), tensors[f"{split}_covariance"].double())
    return RealImages(f"fashion-mnist {split}", digest, moments, tensors[f"{split}_features"].float(), _NUM_REAL[split])


def aside(num_samples: int, space: FeatureSpace | None) -> int | None:
    """Samples of what only stands beside the student, untrained or corrected; None: as many as of itself.

    A quarter of `num_samples`, but as many as distances take.
    """
    least = FEWEST_ASIDE
    if space is not None and num_samples >= 2 * space.dimension:
        least = max(least, 2 * space.dimension)
    fewer = max(num_samples // 4, least)
    return fewer if fewer < num_samples else None


def protocol_for(
    space: FeatureSpace | None,
    model: LoadedPipeline,
    *,
    guidance: float = 1.0,
    reference: str | None = None,
    **values: Any,
) -> Protocol:
    """The protocol of samples of `model`'s kind that are compared in `space`; `values` replace defaults.

    guidance: for models that know a null conditioning; others are sampled without. reference: SHA-256 of the user's
    images, which are inputs of agreement even without a space.
    """
    conditions, section = model.conditions, EvaluationSection()
    values = {
        "num_samples": section.num_samples,
        "sampler_steps": section.sampler_steps,
        "seed": 0,
        "agreement_clean": "teacher samples",
        **values,
    }
    values |= {
        "sampler": model.noise.sampler,
        "sample_shape": list(model.sample_shape),
        "precision": dtype_name(model.precision),
        "aside_samples": aside(values["num_samples"], space),
        "guidance": 1.0 if conditions.null is None else guidance,
        "conditions": conditions.digest,
        "versions": versions(),
    }
    if space is None:
        return Protocol.whole(feature_space=None, reference=reference, **values)
    return Protocol.whole(
        feature_space=space.name,
        extractor=space.digest,
        reference=space.real.digest if space.real else reference,
        **{name: one.digest for name, one in space.beside.items()},
        **values,
    )
