"""Checkpoints in one file: as their authors published them, through diffusers' converters, or a diffusers state dict.

An original checkpoint says what it is by its tensors' names and shapes; configs and noise schedules of the published
models are in originals.json, because diffusers would look them up on the Hub. A config.json beside the file wins.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from diffcompress.errors import UsageError
from diffcompress.teacher.state import StoredState

_ORIGINALS = Path(__file__).parent / "originals.json"
_PREFIX = "model.diffusion_model."
# One tensor of each denoiser as its authors call it, and as diffusers calls none: U-Nets, SD3, Flux.
_TELLING = (
    "input_blocks.0.0.weight",
    "joint_blocks.0.x_block.attn.qkv.weight",
    "double_blocks.0.img_attn.qkv.weight",
)
_TEXT_WIDTH = "input_blocks.{}.1.transformer_blocks.0.attn2.to_k.weight"


@dataclass(frozen=True)
class SingleFile:
    """What a checkpoint is; scheduler: None when the file cannot tell."""

    config: dict[str, Any]
    scheduler: dict[str, Any] | None
    notes: tuple[str, ...]


def recognise(path: Path, config: dict[str, Any] | None) -> SingleFile:
    """From names and shapes alone; `config`: that beside the file, if there is one.

    Raises UsageError for a damaged file, and for one that is neither of a known model nor has a config.
    """
    stored = StoredState([path])
    notes = (
        (f"{path.name} is a pickled state dict, read with weights_only=True",) if path.suffix != ".safetensors" else ()
    )
    if config is not None:
        return SingleFile(config, None, (*notes, f"config from {path.parent / 'config.json'}"))
    known = json.loads(_ORIGINALS.read_text(encoding="utf-8"))
    kind = _kind(stored) if is_original(stored) else None
    if kind not in known:
        raise UsageError(
            f"'{path}' is not recognised as the original checkpoint of a known model{f' ({kind})' if kind else ''}",
            f"put the denoiser's config.json beside it; known are {', '.join(v['name'] for v in known.values())}",
        )
    model = known[kind]
    whole = any(not name.startswith(_PREFIX) for name in stored) and any(name.startswith(_PREFIX) for name in stored)
    rest = "; its VAE and text encoders are not used" if whole else ""
    note = f"{path.name} is a {model['name']} checkpoint, converted in memory{rest}"
    return SingleFile(model["config"], model["scheduler"], (*notes, note))


def is_original(names: Iterable[str]) -> bool:
    """Whether these are the tensor names of a denoiser as its authors published it, alone or inside a checkpoint."""
    return any(name.startswith(_PREFIX) or name in _TELLING for name in names)


def convert(stored: StoredState, config: dict[str, Any]) -> dict[str, Tensor]:
    """The denoiser's tensors by their diffusers names; raises UsageError when the converter cannot follow."""
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

    class_name = config.get("_class_name")
    if class_name not in SINGLE_FILE_LOADABLE_CLASSES:
        raise UsageError(
            f"diffusers does not convert original checkpoints of {class_name}",
            "convert it with the script of its authors, and name the folder",
        )
    inside = [name for name in stored if name.startswith(_PREFIX)] or list(stored)
    # The U-Net converter insists on the prefix, the others do without.
    prefix = _PREFIX if class_name == "UNet2DConditionModel" else ""
    tensors = {prefix + name.removeprefix(_PREFIX): stored[name] for name in inside}
    try:
        converted: dict[str, Tensor] = SINGLE_FILE_LOADABLE_CLASSES[class_name]["checkpoint_mapping_fn"](
            checkpoint=tensors, config=config
        )
    except (KeyError, IndexError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"{stored.files[0]} does not convert to a {class_name}: {type(error).__name__} {error}",
            "the file must be a whole checkpoint of that model",
        ) from error
    return converted


def _kind(stored: StoredState) -> str:
    """diffusers' name for the type of model. It knows some only by their text encoders, and falls back on "v1"."""
    from diffusers.loaders.single_file_utils import infer_diffusers_model_type

    shapes = {name: SimpleNamespace(shape=stored.shape(name)) for name in stored}
    shapes |= {_PREFIX + name: shape for name, shape in shapes.items() if not name.startswith(_PREFIX)}
    kind = str(infer_diffusers_model_type(shapes))
    if kind != "v1":
        return kind
    widths = [shapes[name].shape[-1] for i in (1, 4) if (name := _PREFIX + _TEXT_WIDTH.format(i)) in shapes]
    first = shapes.get(_PREFIX + _TELLING[0])
    if first is None or first.shape[1] != 4 or not widths:
        return "an unknown kind"
    return {768: "v1", 1024: "v2", 2048: "xl_base"}.get(widths[0], "an unknown kind")
