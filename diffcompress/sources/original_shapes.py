"""Which shapes an original layout can say: programs that read it find widths and depths by the tensors alone.

What these do not tell, such programs take from the published models, or compute as their code does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffcompress.families.base import complete
from diffcompress.families.unet2d_condition_rules import heads, mid_attends
from diffcompress.families.unet_rules import attention_levels
from diffcompress.sources.originals import FLUX, SD3, UNET, published

# Config values that tensors tell, or that no function of the denoiser depends on.
_TOLD = {
    UNET: {
        "block_out_channels", "layers_per_block", "time_embedding_dim", "transformer_layers_per_block",
        "reverse_transformer_layers_per_block", "attention_head_dim", "down_block_types", "up_block_types",
        "sample_size", "dropout", "upcast_attention",
    },
    SD3: {
        "num_layers", "num_attention_heads", "caption_projection_dim", "dual_attention_layers", "qk_norm", "patch_size",
        "out_channels", "joint_attention_dim", "pooled_projection_dim", "pos_embed_max_size", "sample_size",
    },
    FLUX: {
        "num_layers", "num_single_layers", "num_attention_heads", "guidance_embeds", "joint_attention_dim",
        "pooled_projection_dim",
    },
}  # fmt: skip


def limit(name: str, config: Mapping[str, Any]) -> str | None:
    """Why a file in the original layout cannot say this shape of the diffusers class `name`; None where it can."""
    if name not in _TOLD:
        return f"a {name} has no original layout that is known ({', '.join(_TOLD)} have)"
    config = complete(name, config)
    models = [complete(name, one["config"]) for one in published().values() if one["config"]["_class_name"] == name]
    # A U-Net is recognised by the width of its texts.
    text = "cross_attention_dim"
    nearest = [one for one in models if name != UNET or one[text] == config[text]]
    if not nearest:
        return f"{text} {config[text]} is of no published model ({', '.join(str(one[text]) for one in models)})"
    model = nearest[0]
    for key in model:
        if not key.startswith("_") and key not in _TOLD[name] and _plain(config[key]) != _plain(model[key]):
            return f"its {key} is {config[key]}, not {model[key]}"
    return {UNET: _unet_limit, SD3: _sd3_limit}.get(name, lambda *_: None)(config, model)


def notes(name: str, config: Mapping[str, Any]) -> tuple[str, ...]:
    """What `plan` tells: nothing of a class without an original layout."""
    if name not in _TOLD:
        return ()
    why = limit(name, config)
    told = "can say this shape (export.original)" if why is None else f"cannot say this shape: {why}"
    return (f"the original layout, which other programs read, {told}",)


def _unet_limit(config: Mapping[str, Any], model: Mapping[str, Any]) -> str | None:
    widths, layers, time = config["block_out_channels"], config["layers_per_block"], config["time_embedding_dim"]
    if not isinstance(layers, int):
        return f"its levels differ in their number of layers, {layers}"
    if time not in (None, 4 * widths[0]):
        return f"its time embedding has {time} values, not {4 * widths[0]}, four times the first width"
    if any(width % widths[0] for width in widths):
        return f"its widths {widths} are no whole multiples of the first"
    attending = sorted(attention_levels(config, mid_attends(config)))
    # As many heads in every level, or heads of one size in all of them.
    numbers = {heads(model)[level] for level in attention_levels(model, mid_attends(model))}
    size = model["block_out_channels"][-1] // heads(model)[-1]
    for level in attending:
        fixed = next(iter(numbers)) if len(numbers) == 1 else widths[level] / size
        if heads(config)[level] != fixed:
            return f"it has {heads(config)[level]} heads in {widths[level]} channels, not {fixed:g}"
    return None


def _sd3_limit(config: Mapping[str, Any], _model: Mapping[str, Any]) -> str | None:
    wide, layers = config["num_attention_heads"], config["num_layers"]
    return None if wide == layers else f"it has {wide} heads in {layers} layers, not as many"


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
