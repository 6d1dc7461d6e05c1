"""The layouts in which the authors of Stable Diffusion and FLUX.1 publish denoisers (ldm, sgm, sd3, flux), both ways.

diffusers has converters from these layouts and none back. A converter is run over tensors that say where they come
from: what it makes of them is a table of which rows of which original tensor every diffusers tensor is, and a table
reads both ways. So reading and writing cannot part, and no name stands here that a converter asks for by itself.
"""

from __future__ import annotations

import json
from collections import UserDict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffcompress.errors import UsageError
from diffcompress.families.base import complete

_ORIGINALS = Path(__file__).parent / "originals.json"
PREFIX = "model.diffusion_model."
UNET, SD3, FLUX = "UNet2DConditionModel", "SD3Transformer2DModel", "FluxTransformer2DModel"
# The layouts that are known, by class: one tensor as its authors call it, and as diffusers calls none. Converters of
# these classes hand on every value of a checkpoint that is theirs.
TELLING = {
    UNET: "input_blocks.0.0.weight",
    SD3: "joint_blocks.0.x_block.attn.qkv.weight",
    FLUX: "double_blocks.0.img_attn.qkv.weight",
}
# Empty tensors say what no other does of the noise process: by name, what they stand for in a scheduler's config.
MARKS = {"v_pred": ("prediction_type", "v_prediction"), "ztsnr": ("rescale_betas_zero_snr", True)}
# FLUX.1's width, which diffusers' converter is fixed to, and the rows of the tensor that it takes apart by it: queries,
# keys and values of one width, a feed-forward of four. All others are halved or cut in three.
_FLUX_WIDTH = 3072
_ROWS, _FLUX_ROWS = 6, 7 * _FLUX_WIDTH
_APART = 1 << 20
_RESIDUAL = ("in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3", "skip_connection")


def published() -> dict[str, dict[str, Any]]:
    """Config, scheduler, pipeline and repository of the published models, by diffusers' name for their kind."""
    found: dict[str, dict[str, Any]] = json.loads(_ORIGINALS.read_text(encoding="utf-8"))
    return found


def convert(tensors: dict[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """A checkpoint's tensors by their diffusers names; what is handed on no further stays in `tensors`.

    Raises KeyError, IndexError, ValueError or RuntimeError when it is no whole checkpoint of the class in `config`.
    """
    if config["_class_name"] != FLUX or len(tensors["img_in.weight"]) == _FLUX_WIDTH:
        return _run_converter(tensors, config)
    table = _table(config, ())
    made = {
        name: _joined([_cut(tensors[one.name], one.start, one.stop, one.rows) for one in pieces])
        for name, pieces in table.items()
    }
    for name in {one.name for pieces in table.values() for one in pieces}:
        del tensors[name]
    return made


def to_original(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """A denoiser's tensors as the original layout names and joins them, with the prefix that published files have.

    config: of a class in TELLING. Raises UsageError for a state dict that has other tensors than the layout.
    """
    table = _table(config, state)
    if other := set(table) ^ set(state):
        raise UsageError(
            f"this {config['_class_name']} has no original layout: {len(other)} tensor(s) have no place in it or are "
            f"missing, first {min(other)}",
            "--set export.original=false goes on without it",
        )
    parts: dict[str, list[tuple[int, Tensor]]] = {}
    for name, pieces in table.items():
        at, rows = 0, sum(one.stop - one.start for one in pieces)
        for one in pieces:
            after = at + one.stop - one.start
            parts.setdefault(one.name, []).append((one.start, _cut(state[name], at, after, rows)))
            at = after
    # FLUX.1 is published bare.
    prefix = "" if config["_class_name"] == FLUX else PREFIX
    ordered = {name: [part for _, part in sorted(found, key=itemgetter(0))] for name, found in parts.items()}
    return {prefix + name: _joined(found).contiguous() for name, found in ordered.items()}


def marks(scheduler: Mapping[str, Any]) -> dict[str, Tensor]:
    """The marks that a file needs for this scheduler config."""
    return {name: torch.zeros(0) for name, (key, value) in MARKS.items() if scheduler.get(key) == value}


@dataclass(frozen=True)
class _Piece:
    """Rows `start` to `stop` of an original tensor, counted as if it had `rows` of them."""

    name: str
    start: int
    stop: int
    rows: int


class _Asked(UserDict[str, Tensor]):
    """A checkpoint that has whatever a converter takes of it: each tensor is one number a row, telling name and row."""

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__()
        self.order: list[str] = []
        for name in names:
            self[name]

    def __missing__(self, name: str) -> Tensor:
        self.order.append(name)
        self[name] = torch.arange(_rows(name)) + (len(self.order) - 1) * _APART
        return self[name]


def _table(config: Mapping[str, Any], names: Collection[str]) -> dict[str, tuple[_Piece, ...]]:
    """By the diffusers name of each tensor, which rows of which original ones it is.

    names: diffusers names of a U-Net's tensors.
    """
    config = complete(config["_class_name"], config)
    asked = _Asked(_BEGINNINGS[config["_class_name"]](config, names))
    made = _run_converter(asked, config)
    # U-Nets are asked in every place for all that may be there.
    kept = set(names) if config["_class_name"] == UNET else set(made)
    return {name: _pieces(value, asked.order) for name, value in made.items() if name in kept}


def _pieces(numbers: Tensor, order: list[str]) -> tuple[_Piece, ...]:
    begins = [0, *((numbers.diff() != 1).nonzero().flatten() + 1).tolist(), len(numbers)]
    found = []
    for first, after in pairwise(begins):
        index, start = divmod(int(numbers[first]), _APART)
        name = order[index].removeprefix(PREFIX)
        found.append(_Piece(name, start, start + after - first, _rows(name)))
    return tuple(found)


def _rows(name: str) -> int:
    return _FLUX_ROWS if ".linear1." in name else _ROWS


def _cut(value: Tensor, start: int, stop: int, rows: int) -> Tensor:
    """Rows `start` to `stop`, counted as if `value` had `rows` of them."""
    return value if stop - start == rows else value[start * len(value) // rows : stop * len(value) // rows]


def _joined(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _run_converter(tensors: Any, config: Mapping[str, Any]) -> dict[str, Tensor]:
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

    loadable: Any = SINGLE_FILE_LOADABLE_CLASSES
    made: dict[str, Tensor] = loadable[config["_class_name"]]["checkpoint_mapping_fn"](
        checkpoint=tensors, config=dict(config)
    )
    return made


def _unet_names(config: Mapping[str, Any], names: Collection[str]) -> list[str]:
    """What may lie in a U-Net of so many blocks and layers; its converter asks for nothing that it does not see."""
    from diffusers.loaders.single_file_utils import DIFFUSERS_TO_LDM_MAPPING

    mapping: Any = DIFFUSERS_TO_LDM_MAPPING["unet"]
    layers, levels = config["layers_per_block"] + 1, len(config["block_out_channels"])
    kinds = ("weight", "bias")
    attention = dict.fromkeys(rest.partition(".")[2] for name in names if (rest := name.partition(".attentions.")[2]))
    found = [*mapping["layers"].values(), *mapping["addition_embed_type"].values()]
    places = [f"input_blocks.{i}" for i in range(1, levels * layers)]
    places += [f"output_blocks.{i}" for i in range(levels * layers)]
    for place in places:
        found += [f"{place}.0.{part}.{kind}" for part in (*_RESIDUAL, "op") for kind in kinds]
        found += [f"{place}.1.{rest}" for rest in attention]
    found += [f"middle_block.{i}.{part}.{kind}" for i in (0, 2) for part in _RESIDUAL for kind in kinds]
    found += [f"middle_block.1.{rest}" for rest in attention]
    for level in range(levels):
        attends = any(name.startswith(f"up_blocks.{level}.attentions.") for name in names)
        place = f"output_blocks.{level * layers + layers - 1}.{1 + attends}"
        found += [f"{place}.conv.{kind}" for kind in kinds]
    return [PREFIX + name for name in found]


def _sd3_names(config: Mapping[str, Any], _names: Collection[str]) -> list[str]:
    """By such names the converter counts blocks, and sees which have a second attention and norms of queries."""
    blocks = [f"joint_blocks.{i}." for i in range(config["num_layers"])]
    return [
        *blocks,
        *(f"{blocks[i]}attn2." for i in config["dual_attention_layers"]),
        *["ln_q"] * bool(config["qk_norm"]),
    ]


def _flux_names(config: Mapping[str, Any], _names: Collection[str]) -> list[str]:
    """By such names the converter counts blocks, and sees whether guidance is told."""
    blocks = [f"double_blocks.{i}." for i in range(config["num_layers"])]
    blocks += [f"single_blocks.{i}." for i in range(config["num_single_layers"])]
    return [*blocks, *["guidance"] * bool(config["guidance_embeds"])]


_BEGINNINGS = {UNET: _unet_names, SD3: _sd3_names, FLUX: _flux_names}
