"""A whole pipeline as diffusers alone loads it, around a denoiser that is in memory already."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from diffcompress.errors import UsageError
from diffcompress.pipeline.load import LoadedPipeline
from diffcompress.sources.linking import unlist
from diffcompress.sources.model_index import parts_of, read_config


def load_whole(folder: Path, pipeline: LoadedPipeline, dtype: torch.dtype) -> Any:
    """The diffusers pipeline of `folder` with the denoiser of `pipeline`, which is taken off the folder's index for it;
    the other parts in `dtype`, all on its device.

    Raises UsageError for an encoder that is not whole: transformers would fill it up with noise; and what diffusers and
    transformers raise, of many kinds.
    """
    from diffusers import DiffusionPipeline

    name = pipeline.family.subfolder
    unlist(folder, name)
    given: dict[str, Any] = {name: pipeline.denoiser, "torch_dtype": dtype}
    given |= dict.fromkeys(pipeline.reference.left_out) | _encoders(folder, pipeline.reference.id, dtype)
    whole = DiffusionPipeline.from_pretrained(folder, **given)
    for part in whole.components.values():
        if isinstance(part, nn.Module) and part is not pipeline.denoiser:
            part.to(pipeline.device)
    return whole


def _encoders(folder: Path, of: str, dtype: torch.dtype) -> dict[str, Any]:
    """The parts of a pipeline that transformers loads, by name."""
    index = read_config(folder / "model_index.json")
    wanted = {part: index[part][1] for part in parts_of(index) if index[part][0] == "transformers"}
    if not wanted:
        return {}
    import transformers

    found: dict[str, Any] = {}
    for part, class_name in wanted.items():
        cls = getattr(transformers, str(class_name), None)
        if isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel):
            loaded: Any = cls.from_pretrained(folder / part, torch_dtype=dtype, output_loading_info=True)
            found[part], told = loaded
            if lacking := sorted(told["missing_keys"]):
                raise UsageError(
                    f"the {part} of '{of}' is not whole: it lacks {len(lacking)} tensor(s), first {lacking[0]}",
                    "bring its complete weights into the pipeline: transformers would fill it up with noise",
                )
    return found
