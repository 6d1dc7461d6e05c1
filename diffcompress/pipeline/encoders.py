"""The parts of a pipeline that transformers loads: on the device, or, where it does not hold one, in its files."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from diffcompress.errors import UsageError
from diffcompress.memory import SHARE
from diffcompress.records import units
from diffcompress.runtime import Progress, free_memory
from diffcompress.sources.model_index import parts_of, read_config


def load_encoders(
    folder: Path, of: str, dtype: torch.dtype, device: torch.device, progress: Progress
) -> dict[str, Any]:
    """The parts of the pipeline in `folder` that transformers loads, by name, in `dtype`, to be called on `device`.

    Of one that free memory does not hold, told by a note, layers stay in their files, which must stay too; accelerate
    reads them when they are called. Raises UsageError for one that is not whole: transformers would fill it up with
    noise; and what transformers raises, of many kinds.
    """
    index = read_config(folder / "model_index.json")
    wanted = {part: index[part][1] for part in parts_of(index) if index[part][0] == "transformers"}
    if not wanted:
        return {}
    import transformers

    logging.getLogger("accelerate.big_modeling").setLevel(logging.ERROR)  # the note below says what it would
    found: dict[str, Any] = {}
    for part, class_name in wanted.items():
        cls = getattr(transformers, str(class_name), None)
        if not (isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)):
            continue
        needed, free = _bytes(cls, folder / part, dtype), free_memory(device)
        placed = needed > SHARE * free and device.type in ("cpu", "cuda")
        where = _where(device, folder) if placed else {}
        loaded: Any = cls.from_pretrained(folder / part, torch_dtype=dtype, output_loading_info=True, **where)
        model, told = loaded
        if lacking := sorted(told["missing_keys"]):
            raise UsageError(
                f"the {part} of '{of}' is not whole: it lacks {len(lacking)} tensor(s), first {lacking[0]}",
                "bring its complete weights into the pipeline: transformers would fill it up with noise",
            )
        if placed:
            progress.note(
                f"the {part} of {units.size(needed)} does not fit in {units.size(free)} of free memory: layers stay "
                "where there is room for them, and are brought for each call"
            )
        found[part] = model if placed else model.to(device)
    return found


def _bytes(cls: Any, part: Path, dtype: torch.dtype) -> int:
    """Of the weights in memory; 0 of quantised ones, which are as large as their files."""
    config = cls.config_class.from_pretrained(part)
    if getattr(config, "quantization_config", None) is not None:
        return 0
    with torch.device("meta"):
        return sum(value.numel() for value in cls(config).parameters()) * dtype.itemsize


def _where(device: torch.device, folder: Path) -> dict[str, Any]:
    """What tells transformers to fill free memory, that of the device first, and leave the rest in the files."""
    places = {torch.device("cpu"), device}
    room = {"cpu" if one.type == "cpu" else one.index or 0: int(SHARE * free_memory(one)) for one in places}
    return {"device_map": "auto", "max_memory": room, "offload_folder": folder}
