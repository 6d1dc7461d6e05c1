"""Tensor names as diffusers has them now, from under whatever wrote or wrapped them; and what is no plain model."""

from __future__ import annotations

import re
from collections.abc import Iterable

from diffcompress.errors import UsageError

_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_FORMER_ATTENTION = re.compile(r"(.*attentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)")
# Of torch.compile, FSDP and checkpointing, around blocks, too.
_WRAPPERS = re.compile(r"_orig_mod\.|_fsdp_wrapped_module\.|_checkpoint_wrapped_module\.")
_BASE = ".base_layer."
_LORA = re.compile(r"(^|[._])lora(_|\.)(A|B|up|down|embedding|magnitude)")
_BITSANDBYTES = re.compile(r"\.(absmax|quant_map|SCB|quant_state\.bitsandbytes\w*)$")
_QUANTISED = re.compile(
    r"\.(qweight|qzeros|scales|_data|_scale|scale_weight|weight_scale|weight_format|wscales|smooth_factor)$"
)


def plain_names(stored: Iterable[str]) -> dict[str, str]:
    """The stored name of each tensor by the one that diffusers knows it by."""
    names = list(stored)
    found = {_WRAPPERS.sub("", name): name for name in names}
    # No denoiser is one module alone: what all names begin with is what held it (DistributedDataParallel, a trainer).
    while len(found) > 1 and len({name.partition(".")[0] if "." in name else name for name in found}) == 1:
        found = {name.partition(".")[2]: own for name, own in found.items()}
    if not any(_LORA.search(name) for name in names):  # else the base is not the whole of a layer
        found = {name.replace(_BASE, "."): own for name, own in found.items()}
    return {_now(name): own for name, own in found.items()}


def check_plain(names: Iterable[str], where: object) -> None:
    """Raise UsageError for the tensors of adapters and of quantised models, which are no weights of a denoiser."""
    names = list(names)
    if (lora := _first(_LORA, names)) is not None:
        if all(_LORA.search(name) or name.endswith("alpha") for name in names):
            raise UsageError(f"{where} is a LoRA ({lora}), not a model", "name the model that it was made for")
        raise UsageError(
            f"{where} holds LoRA layers beside the weights that they change ({lora})",
            "merge them in diffusers, pipeline.fuse_lora() and pipeline.unload_lora_weights(), and save it again",
        )
    for pattern, by in ((_BITSANDBYTES, " by bitsandbytes"), (_QUANTISED, "")):
        if (sign := _first(pattern, names)) is not None:
            raise UsageError(
                f"{where} is quantised{by} ({sign})", "take the teacher's weights in float16, bfloat16 or float32"
            )


def _first(pattern: re.Pattern[str], names: list[str]) -> str | None:
    return next((name for name in names if pattern.search(name)), None)


def _now(name: str) -> str:
    former = _FORMER_ATTENTION.fullmatch(name)
    return f"{former[1]}.{_ATTENTION[former[2]]}.{former[3]}" if former else name
