"""Which feature extractor a file or folder holds: told by its content, never by its name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from diffcompress.errors import UsageError
from diffcompress.evaluation import vision
from diffcompress.evaluation.embedded import Extractor
from diffcompress.evaluation.inception import Inception
from diffcompress.records.fingerprints import sha256
from diffcompress.sources.model_index import read_config
from diffcompress.sources.state import StoredState

ADVICE = (
    "--feature-weights takes Inception-v3 (pt_inception-2015-12-05 as .pth or .safetensors), "
    "a DINOv2 folder (facebook/dinov2-large) or a CLIP folder (openai/clip-vit-base-patch32)"
)


@dataclass(frozen=True)
class Read:
    """kind: demo, inception, dinov2 or clip; digest: SHA-256 of the weights (and of a folder's config)."""

    kind: str
    extractor: nn.Module
    digest: str


def read(text: str | Path) -> Read:
    """The extractor at a path, or of a Hub id that lies in the local cache; nothing is ever downloaded.

    Raises UsageError for what is missing, damaged or no known extractor.
    """
    path = Path(text).expanduser()
    if path.is_dir():
        return _from_folder(path)
    if path.is_file():
        return _from_file(path)
    folder = cached(str(text))
    if folder is None:
        raise UsageError(
            f"no feature extractor at '{text}': not a file or folder, nor in the Hub's local cache", ADVICE
        )
    return _from_folder(folder)


def _from_file(path: Path) -> Read:
    state = dict(StoredState([path]))
    if "body.0.weight" in state:
        return Read("demo", _filled(Extractor.for_state(state), state, path), sha256(path))
    if "Mixed_7c.branch_pool.conv.weight" in state:
        return Read("inception", _filled(Inception(), state, path), sha256(path))
    raise UsageError(f"{path} holds no known feature extractor: its first tensor is {min(state)}", ADVICE)


def _filled(extractor: nn.Module, state: Mapping[str, Tensor], path: Path) -> nn.Module:
    wanted = extractor.state_dict()
    # The public Inception weights come from TensorFlow, whose batch norms count no batches.
    counters = {name: value for name, value in wanted.items() if name.endswith("num_batches_tracked")}
    state = {**counters, **state}
    odd = sorted(set(wanted) ^ set(state)) + [
        name for name in sorted(set(wanted) & set(state)) if wanted[name].shape != state[name].shape
    ]
    if odd:
        raise UsageError(
            f"{path} does not hold all weights of its extractor: {odd[0]} is missing, unknown or of another shape",
            "check that the download is complete",
        )
    extractor.load_state_dict(state)
    return extractor.eval().requires_grad_(False)


def _from_folder(folder: Path) -> Read:
    config = folder / "config.json"
    try:
        model_type = read_config(config).get("model_type")
    except UsageError as error:
        raise UsageError(
            f"{folder} is not a model folder: it has no readable config.json ({error.message})", ADVICE
        ) from error
    if not isinstance(model_type, str) or model_type not in vision.MODEL_TYPES:
        raise UsageError(f"{folder} holds no known feature extractor: its model_type is {model_type!r}", ADVICE)
    kind = vision.MODEL_TYPES[model_type]
    extractor = vision.read_folder(folder, kind)
    return Read(kind, extractor, sha256(config, *sorted(folder.glob("*.safetensors"))))


def cached(text: str) -> Path | None:
    """The folder of a Hub id in the local cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(text, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError):
        return None
