"""Checkpoints in one file: as their authors published them, through diffusers' converters, or a diffusers state dict.

An original checkpoint says what it is by its tensors' names and shapes; configs, noise schedules and pipelines of the
published models are in originals.json, because diffusers would look them up on the Hub. What lies beside the file wins:
a config.json, or the pipeline folder (model_index.json) that the file was put into.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from diffcompress.errors import UsageError
from diffcompress.sources import originals
from diffcompress.sources.model_index import DENOISERS, parts_of
from diffcompress.sources.names import check_plain
from diffcompress.sources.originals import MARKS, PREFIX, TELLING, UNET
from diffcompress.sources.reference import Surroundings
from diffcompress.sources.state import StoredState

_TEXT_WIDTH = "input_blocks.{}.1.transformer_blocks.0.attn2.to_k.weight"
# Where whole checkpoints keep what is no denoiser: by part of the pipeline, T5 being the second encoder or the third.
_PARTS = {
    "vae": ("first_stage_model.", "vae."),
    "text_encoder": ("cond_stage_model.", "conditioner.embedders.0.", "text_encoders.clip_l."),
    "text_encoder_2": ("conditioner.embedders.1.", "text_encoders.clip_g."),
}
_T5 = ("text_encoders.t5xxl.",)
_NO_DENOISER = (*(prefix for prefixes in _PARTS.values() for prefix in prefixes), *_T5)
# No checkpoint holds a safety checker, and diffusers takes none to one either; the other two work for it or for images.
LEFT_OUT = ("safety_checker", "feature_extractor", "image_encoder")


@dataclass(frozen=True)
class SingleFile:
    """What a checkpoint is; scheduler: None when neither the file nor its kind tells; surroundings: None for a bare
    denoiser of which nothing more is known."""

    config: dict[str, Any]
    scheduler: dict[str, Any] | None
    surroundings: Surroundings | None
    notes: tuple[str, ...]


def recognise(path: Path, config: dict[str, Any] | None, index: dict[str, Any] | None = None) -> SingleFile:
    """What a checkpoint is, from names and shapes alone.

    config, index: the denoiser's and the pipeline's beside the file, if there are.

    Raises UsageError for a damaged file, and for one that is neither of a known model nor has a config.
    """
    stored = StoredState([path])
    if coarse := next((n for n in stored if not n.startswith(_NO_DENOISER) and stored.is_eight_bits(n)), None):
        raise UsageError(
            f"the denoiser in '{path}' is stored in 8 bits ({coarse})", "name a checkpoint in half or full precision"
        )
    notes = [f"{path.name} is a pickled state dict, read with weights_only=True"] * (path.suffix != ".safetensors")
    check_plain(stored, path)
    scheduler, place = None, None
    if config is None:
        model = _known(path, stored)
        config, scheduler, place = model["config"], _noise_of(path, stored, model["scheduler"]), model["repository"]
        index, place = (model["pipeline"], place) if index is None else (index, path.parent)
        notes.append(f"{path.name} is a {model['name']} checkpoint, converted in memory")
        if scheduler is not None:
            kind = scheduler.get("prediction_type", scheduler["_class_name"])
            notes.append(f"its noise process is taken to be that model's ({kind}); --scheduler states another")
    elif index is not None:
        place = path.parent
    if index is None or place is None:
        return SingleFile(config, scheduler, None, tuple(notes))
    around = _around(stored, config, index, place)
    notes.append(f"the rest of its pipeline: {around.told()}")
    if unused := [part for part in LEFT_OUT if part in parts_of(index)]:
        notes.append(f"{', '.join(unused)} of that pipeline: left out, as diffusers does for single files")
    return SingleFile(config, scheduler, around, tuple(notes))


def _noise_of(path: Path, stored: StoredState, usual: dict[str, Any] | None) -> dict[str, Any] | None:
    """The scheduler config of a model, bent as the empty tensors say that fine-tuned checkpoints carry as marks.

    Raises UsageError for those with the noise levels of EDM, which have a preconditioning of their own.
    """
    if any(name.startswith("edm_") for name in stored):
        raise UsageError(
            f"'{path}' cannot be distilled: it is marked as EDM (edm_vpred), whose preconditioning is not supported",
            "DDPM-type teachers (epsilon, sample or v prediction) and flow-matching teachers can",
        )
    marked = dict(meaning for name, meaning in MARKS.items() if name in stored)
    return usual if usual is None else usual | marked


def _known(path: Path, stored: StoredState) -> dict[str, Any]:
    known = originals.published()
    kind = _kind(stored) if is_original(stored) else None
    if kind in known:
        return known[kind]
    raise UsageError(
        f"'{path}' is not recognised as the original checkpoint of a known model{f' ({kind})' if kind else ''}",
        f"put the denoiser's config.json beside it; known are {', '.join(v['name'] for v in known.values())}",
    )


def _around(
    stored: StoredState, config: Mapping[str, Any], index: Mapping[str, Any], place: Path | str
) -> Surroundings:
    kept = {key: value for key, value in index.items() if key not in LEFT_OUT and key != "_name_or_path"}
    # An older class name, such as Transformer2DModel, may stand there.
    whole = kept | {part: ["diffusers", config.get("_class_name")] for part in DENOISERS if part in kept}
    prefixes = {part: _T5 if whole[part][1] == "T5EncoderModel" else _PARTS.get(part, ()) for part in parts_of(whole)}
    held = {part: tuple(n for n in stored if n.startswith(p)) for part, p in prefixes.items() if p}
    return Surroundings(whole, place, {part: names for part, names in held.items() if names})


def is_original(names: Iterable[str]) -> bool:
    """Whether these are the tensor names of a denoiser as its authors published it, alone or inside a checkpoint."""
    return any(name.startswith(PREFIX) or name in TELLING.values() for name in names)


def stand_ins(stored: StoredState, config: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors that `convert` will make, in names and shapes alone, on the meta device.

    Raises UsageError also for a tensor that the converter would drop: without it the model is another function.
    """
    hollow = {name: torch.empty(stored.shape(name), device="meta") for name in _inside(stored)}
    rest = dict(hollow)
    converted = _converted(rest, config, stored.files[0])
    if config["_class_name"] in TELLING and _size(converted) < _size(hollow):
        # What a converter takes, it takes out of its input or hands on as it is.
        handed_on = {id(value) for value in converted.values()}
        lost = [name for name, value in rest.items() if id(value) not in handed_on and value.numel()]
        raise UsageError(
            f"{stored.files[0]} is no plain {config['_class_name']}: {len(lost)} tensor(s) have no place in it, "
            f"first {next(iter(lost), '')}",
            "take the checkpoint that it was made from; one that was distilled or conditioned otherwise is not known",
        )
    return converted


def _size(tensors: Mapping[str, Tensor]) -> int:
    return sum(value.numel() for value in tensors.values())


def _inside(stored: StoredState) -> list[str]:
    """The denoiser's tensors of a checkpoint."""
    prefixed = [name for name in stored if name.startswith(PREFIX)]
    return prefixed or [name for name in stored if not name.startswith(_NO_DENOISER)]


def convert(stored: StoredState, config: dict[str, Any]) -> dict[str, Tensor]:
    """The denoiser's tensors by their diffusers names; raises UsageError when the converter cannot follow."""
    return _converted({name: stored[name] for name in _inside(stored)}, config, stored.files[0])


def _converted(tensors: dict[str, Tensor], config: dict[str, Any], file: object) -> dict[str, Tensor]:
    """What is handed on no further stays in `tensors`, as diffusers' converters leave it; names lose the prefix."""
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

    loadable: Any = SINGLE_FILE_LOADABLE_CLASSES
    class_name = config.get("_class_name")
    if class_name not in loadable:
        raise UsageError(
            f"diffusers does not convert original checkpoints of {class_name}",
            "convert it with the script of its authors, and name the folder",
        )
    # The U-Net converter insists on the prefix, the others do without.
    prefix = PREFIX if class_name == UNET else ""
    for name in list(tensors):
        tensors[prefix + name.removeprefix(PREFIX)] = tensors.pop(name)
    try:
        return originals.convert(tensors, config)
    except (KeyError, IndexError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"{file} does not convert to a {class_name}: {type(error).__name__} {error}",
            "the file must be a whole checkpoint of that model",
        ) from error


def _kind(stored: StoredState) -> str:
    """diffusers' name for the type of model. It knows some only by their text encoders, and falls back on "v1"."""
    from diffusers.loaders.single_file_utils import infer_diffusers_model_type

    shapes = {name: SimpleNamespace(shape=stored.shape(name)) for name in stored}
    shapes |= {PREFIX + name: shape for name, shape in shapes.items() if not name.startswith(PREFIX)}
    kind = str(infer_diffusers_model_type(shapes))
    if kind != "v1":
        return kind
    widths = [shapes[name].shape[-1] for i in (1, 4) if (name := PREFIX + _TEXT_WIDTH.format(i)) in shapes]
    first = shapes.get(PREFIX + TELLING[UNET])
    if first is None or first.shape[1] != 4 or not widths:
        return "an unknown kind"
    return {768: "v1", 1024: "v2", 2048: "xl_base"}.get(widths[0], "an unknown kind")
