"""Feature spaces: a small classifier whose features images are compared in, and the real images' statistics there."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from diffcompress.errors import UsageError
from diffcompress.evaluation.frechet import Moments
from diffcompress.teacher.load import LoadedPipeline
from diffcompress.teacher.reference import DEMO_FOLDER, demo_names, resolve
from diffcompress.teacher.weights import fingerprint, weight_files

EXTRACTOR_FILE = DEMO_FOLDER / "extractor.safetensors"
REFERENCE_FILE = DEMO_FOLDER / "reference.safetensors"
DIMENSION = 64
IMAGE_SHAPE = (1, 28, 28)


class Extractor(nn.Module):
    """Classifier of 1x28x28 images in [-1, 1]; the features are its last convolution's `DIMENSION` channels, averaged.

    Averaged channels, as in the Inception network of the FID, because of three choices that were measured they had the
    lowest distance between real images and real images, relative to that between samples and real images.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in ((1, 24), (24, 48), (48, DIMENSION)):
            layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
            layers += [nn.MaxPool2d(2)]
        self.body = nn.Sequential(*layers[:-1])
        pooled = [nn.AvgPool2d(2), nn.Flatten(), nn.Linear(9 * DIMENSION, 64), nn.ReLU()]
        self.head = nn.Sequential(*pooled, nn.Linear(64, num_classes))

    def features(self, images: Tensor) -> Tensor:
        """`[N, DIMENSION]` of images `[N, 1, 28, 28]` in [-1, 1] (clamped to it)."""
        return self.body(images.clamp(-1, 1)).mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images.clamp(-1, 1)))


@dataclass(frozen=True)
class RealImages:
    """Real images in a feature space. moments: what Frechet distances are measured to; features: `[n, 64]` of some of
    them, for kernel distances; other: features of images that are not among those, for the real-to-real floor."""

    name: str
    digest: str
    moments: Moments
    features: Tensor
    other: Tensor | None = None


@dataclass(frozen=True)
class FeatureSpace:
    """name: distances in it are called fd_<name> and kd_<name>; digest: SHA-256 of the extractor's file.

    real: the reference distances are measured to; held_out: a second one that nothing was ever tuned on.
    """

    name: str
    digest: str
    extractor: Extractor
    real: RealImages | None = None
    held_out: RealImages | None = None
    dimension: int = field(default=DIMENSION)

    @torch.no_grad()
    def features(self, images: Tensor, batch_size: int = 256) -> Tensor:
        """`[N, dimension]` float32 on the CPU."""
        device = next(self.extractor.parameters()).device
        return torch.cat([self.extractor.features(part.to(device).float()).cpu() for part in images.split(batch_size)])


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_extractor(path: Path) -> Extractor:
    """An extractor from its safetensors file, in evaluation mode; raises UsageError when it is not one."""
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UsageError(
            f"cannot read the feature extractor {path}: {error}", "name the extractor's .safetensors file"
        ) from error
    extractor = Extractor(len(state["head.4.bias"]) if "head.4.bias" in state else 10)
    try:
        extractor.load_state_dict(
            {name: value if value.dtype == torch.int64 else value.float() for name, value in state.items()}
        )
    except RuntimeError as error:
        first = str(error).splitlines()[1:2]
        raise UsageError(
            f"{path} does not hold the weights of diffcompress's extractor: {' '.join(first).strip()}",
            "make one with benchmarks/train_extractor.py",
        ) from error
    return extractor.eval().requires_grad_(False)


def demo_space() -> FeatureSpace:
    """The embedded feature space. Real images: Fashion-MNIST's training set; held out: its test set."""
    digest = sha256(EXTRACTOR_FILE)
    with safe_open(REFERENCE_FILE, framework="pt") as handle:
        stamp = (handle.metadata() or {}).get("extractor_sha256")
        tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 (not a mapping)
    if stamp != digest:
        raise UsageError(
            f"the reference statistics {REFERENCE_FILE} were made with another extractor ({stamp}, not {digest})",
            "make both again with benchmarks/train_extractor.py",
        )
    train, test = (_real(tensors, split, sha256(REFERENCE_FILE)) for split in ("train", "test"))
    return FeatureSpace(
        "demo",
        digest,
        read_extractor(EXTRACTOR_FILE),
        RealImages(train.name, train.digest, train.moments, train.features, test.features),
        RealImages(test.name, test.digest, test.moments, test.features, train.features),
    )


def find_space(teacher: LoadedPipeline | None, feature_weights: str | Path | None = None) -> FeatureSpace | None:
    """The feature space for samples of `teacher`: the demo's for an embedded teacher, the file the user names, or none.

    Raises UsageError for a `feature_weights` file that is missing or is no extractor.
    """
    if feature_weights is not None:
        path = Path(feature_weights)
        if not path.is_file():
            raise UsageError(
                f"no feature extractor at '{path}': the file does not exist", "name the extractor's .safetensors file"
            )
        digest = sha256(path)
        if EXTRACTOR_FILE.is_file() and digest == sha256(EXTRACTOR_FILE):
            return demo_space()
        name = "".join(c if c.isalnum() else "_" for c in path.stem.lower())
        return FeatureSpace(name, digest, read_extractor(path))
    return demo_space() if teacher is not None and _is_embedded(teacher) and EXTRACTOR_FILE.is_file() else None


def _is_embedded(teacher: LoadedPipeline) -> bool:
    if teacher.sample_shape != IMAGE_SHAPE:
        return False
    for name in demo_names():
        reference = resolve(f"demo:{name}")
        if fingerprint(reference, weight_files(reference.denoiser)) == teacher.fingerprint:
            return True
    return False


def _real(tensors: Mapping[str, Tensor], split: str, digest: str) -> RealImages:
    moments = Moments(tensors[f"{split}_mean"].double(), tensors[f"{split}_covariance"].double())
    return RealImages(f"fashion-mnist {split}", digest, moments, tensors[f"{split}_features"].float())
