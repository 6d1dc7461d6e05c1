"""Which of the weight files in a model folder to use: one variant, all its shards, safetensors before pickles.

Only names that diffusers and transformers give a model's weights count: a LoRA, an adapter or another model's weights
beside them is never taken for the model.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from diffcompress.errors import UsageError

PICKLES = (".bin", ".ckpt", ".pt", ".pth")
# What else parts are made of, as diffusers and transformers call it. Whatever has another name is the user's own.
VOCABULARIES = {
    "tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "spm.model", "tokenizer.model", "sentencepiece.model",
    "sentencepiece.bpe.model",
}  # fmt: skip
_SMALL = VOCABULARIES | {
    "config.json", "generation_config.json", "scheduler_config.json", "preprocessor_config.json",
    "image_processor_config.json", "video_preprocessor_config.json", "processor_config.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "chat_template.json", "chat_template.jinja", "merges.txt",
}  # fmt: skip
# What else weights may be called, and what they are then.
FORMATS = {
    ".msgpack": "Flax", ".h5": "TensorFlow", ".pb": "TensorFlow", ".onnx": "ONNX", ".onnx_data": "ONNX",
    ".xml": "OpenVINO", ".gguf": "GGUF, which is quantised",
}  # fmt: skip
# Weights in whatever format, of which a folder on the Hub may hold many.
_WEIGHTS = (".safetensors", *PICKLES, *FORMATS, ".tflite", ".ot")
_NAME = re.compile(
    r"(?P<stem>[^.]+?)(?:\.(?P<variant>[\w-]+?))?(?:-(?P<number>\d{5})-of-(?P<total>\d{5}))?(?:\.(?P<late>\w+))?"
    r"\.(?P<kind>safetensors|bin)"
)
_INDEX = re.compile(r".+\.(?P<kind>\w+)\.index(?:\.(?P<variant>\w+))?\.json")
# Full precision first; then what keeps the range of float32. A "non_ema" and its like come last.
_VARIANTS = ("", "bf16", "fp16")
_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
_OTHER_STEMS = ("flax_model", "diffusion_flax_model", "tf_model", "openvino_model", "rust_model")


def choose(names: Iterable[str], where: str) -> list[str]:
    """The weight files of one variant among the file names of a model folder; [] when there are none.

    `where` names the folder in the UsageError for a missing shard.
    """
    groups: dict[tuple[Any, ...], list[str]] = defaultdict(list)
    totals: dict[tuple[Any, ...], int] = {}
    for name in sorted(names):
        match = _NAME.fullmatch(name)
        if match is None or match["stem"] not in _STEMS:
            continue
        variant = _variant(name)
        key = (
            match["kind"] != "safetensors",
            _rank(variant, _VARIANTS),
            variant,
            _STEMS.index(match["stem"]),
            match["total"] is None,  # diffusers reads shards, too, where both lie
            match["total"] or "",
        )
        groups[key].append(name)
        totals[key] = int(match["total"] or 1)
    if not groups:
        return []
    best = min(groups)
    found, total = groups[best], totals[best]
    if len(found) < total:
        numbers = [int(m["number"]) for name in found if (m := _NAME.fullmatch(name))]
        first = min(set(range(1, total + 1)) - set(numbers))
        raise UsageError(
            f"{where} lacks the shard {first} of {total} beside {found[0]}", "check that the download is complete"
        )
    return found


def choose_files(names: Iterable[str], where: str) -> list[str]:
    """All that a part of a pipeline is made of: the chosen weights, their index, configs and vocabularies."""
    names = sorted(names)
    chosen = choose(names, where)
    variants = {_variant(name) for name in chosen}

    def is_wanted(name: str) -> bool:
        index = _INDEX.fullmatch(name)
        if index is not None:
            is_theirs = (index["variant"] or "") in variants and chosen[0].endswith(index["kind"])
            return is_theirs and len(chosen) > 1
        return name in chosen or name in _SMALL

    return [name for name in names if is_wanted(name)]


def is_known(name: str) -> bool:
    """Whether a part may hold a file of that name: what it is made of, or weights in whatever format and variant."""
    if name in _SMALL or _INDEX.fullmatch(name):
        return True
    return name.endswith(_WEIGHTS) and re.split(r"[.-]", name, maxsplit=1)[0] in (*_STEMS, *_OTHER_STEMS)


def plain_name(name: str) -> str:
    """The name of a weight file or index without its variant and as safetensors, as `from_pretrained` looks for it when
    no variant is named."""
    match = _NAME.fullmatch(name)
    if match is None:
        index = _INDEX.fullmatch(name)
        return f"{_stem(name.partition('.')[0])}.safetensors.index.json" if index else name
    shard = f"-{match['number']}-of-{match['total']}" if match["number"] else ""
    return f"{_stem(match['stem'])}{shard}.safetensors"


def variant_of(names: Iterable[str], where: str) -> str | None:
    """The variant that `choose` takes, None for plain names and where there are no weights."""
    chosen = choose(names, where)
    return (_variant(chosen[0]) or None) if chosen else None


def _stem(stem: str) -> str:
    """The name of a weight file without its ending, as safetensors has it: transformers calls its pickles otherwise."""
    return "model" if stem == "pytorch_model" else stem


def _variant(name: str) -> str:
    match = _NAME.fullmatch(name)
    return (match["variant"] or match["late"] or "") if match else ""


def _rank(value: str, order: tuple[str, ...]) -> int:
    return order.index(value) if value in order else len(order)
