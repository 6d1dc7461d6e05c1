"""A LoRA adapter of the teacher, cut down to the layers that the student took over whole, under their names there."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from diffcompress.errors import UsageError

# As diffusers and peft name the tensors of an adapter: a prefix for the denoiser, its layer, what it is of the two.
_KEY = re.compile(
    r"(?P<prefix>(?:transformer|unet|base_model\.model)\.|)(?P<layer>[^.].*?)\.(?P<rest>(?:lora_|lora\.|dora_scale|alpha).*)"
)
_OF_ENCODERS = re.compile(r"text_encoder(_\d)?\.")
_HEADER = "lora_adapter_metadata"  # of diffusers: JSON with peft's config, by prefix


def check_adapter(file: Path, layers: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise UsageError for what is no adapter of the teacher, or has no layer that fits.

    layers: the teacher's by the student's, of those that are whole; shapes: of the student's tensors.
    """
    tensors, header = _read(file)
    _sorted(tensors, file, layers, shapes)
    _parsed(header, file)


def export_adapter(
    file: Path, layers: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]], target: Path
) -> dict[str, Any]:
    """Write `target`, and tell how many `layers` of the adapter it holds and how many were `left_out`."""
    tensors, header = _read(file)
    kept, count, left_out = _sorted(tensors, file, layers, shapes)
    if _HEADER in header:
        header[_HEADER] = json.dumps(_renamed(_parsed(header, file), layers))
    save_file(kept, target, {**header, "format": "pt"})
    return {"file": target.name, "layers": count, "left_out": left_out}


def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    advice = "name the adapter's .safetensors file"
    if not file.is_file():
        raise UsageError(f"export.adapter {file} is no file", advice)
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}, dict(opened.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UsageError(f"export.adapter {file} cannot be read as safetensors: {error}", advice) from error


def _parsed(header: Mapping[str, str], file: Path) -> Any:
    try:
        return json.loads(header.get(_HEADER, "{}"))
    except (ValueError, RecursionError) as error:
        told = f"export.adapter {file} has a header whose {_HEADER} is no JSON: {error}"
        raise UsageError(told, "save the adapter again with save_lora_weights") from error


def _sorted(
    tensors: Mapping[str, Tensor], file: Path, layers: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, Tensor], int, int]:
    """What fits, by its name in the student, with the number of layers that do and that do not."""
    ours = {theirs: mine for mine, theirs in layers.items()}
    kept: dict[str, Tensor] = {}
    fits, others = set(), set()
    for name, value in tensors.items():
        if _OF_ENCODERS.match(name):  # which are the teacher's
            kept[name] = value
            continue
        if (parts := _KEY.fullmatch(name)) is None:
            raise UsageError(
                f"export.adapter {file} has a tensor '{name}', which diffusers does not name so",
                "load the adapter into the teacher's pipeline and save it with save_lora_weights, which renames it",
            )
        layer = parts["layer"]
        if (mine := ours.get(layer)) is None:
            others.add(layer)
            continue
        _check_shape(file, name, value, shapes[f"{mine}.weight"])
        kept[f"{parts['prefix']}{mine}.{parts['rest']}"] = value
        fits.add(layer)
    if not fits:
        why = f"none of its {len(others)} layers is a whole layer of the student" if others else "it has no layer"
        raise UsageError(
            f"export.adapter {file} does not fit: {why}",
            "students that lost depth alone keep layers whole; --set export.adapter=null goes on without it",
        )
    return kept, len(fits), len(others)


def _check_shape(file: Path, name: str, value: Tensor, shape: tuple[int, ...]) -> None:
    """Raise UsageError for an adapter of another model with layers of equal names."""
    axis = 1 if re.search(r"lora_A|lora\.down|lora_down", name) else 0
    down_or_up = re.search(r"lora_[AB]|lora[._](down|up)", name) is not None
    if down_or_up and (value.dim() < 2 or value.shape[axis] != shape[axis]):
        raise UsageError(
            f"export.adapter {file} is of another model: {name} has the shape {list(value.shape)}, its layer "
            f"{list(shape)}",
            "name an adapter that was made for this teacher",
        )


def _renamed(value: Any, layers: Mapping[str, str]) -> Any:
    """peft's config with the student's names for whole layers; what names no layer in full stays."""
    ours = {theirs: mine for mine, theirs in layers.items()}
    if isinstance(value, dict):
        return {ours.get(name, name): _renamed(one, layers) for name, one in value.items()}
    if isinstance(value, list):
        return [_renamed(one, layers) for one in value]
    return ours.get(value, value) if isinstance(value, str) else value
