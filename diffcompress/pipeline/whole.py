"""A whole pipeline as diffusers alone loads it, around a denoiser that is in memory already."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from diffcompress.pipeline.encoders import load_encoders
from diffcompress.pipeline.load import LoadedPipeline
from diffcompress.runtime import Progress
from diffcompress.sources.linking import unlist


def load_whole(folder: Path, pipeline: LoadedPipeline, dtype: torch.dtype, progress: Progress) -> Any:
    """The diffusers pipeline of `folder` with the denoiser of `pipeline`, which is taken off the folder's index for it;
    the other parts in `dtype`, to be called on its device, as `load_encoders` says.

    Raises UsageError for an encoder that is not whole, and what diffusers and transformers raise, of many kinds.
    """
    from diffusers import DiffusionPipeline

    name = pipeline.family.subfolder
    unlist(folder, name)
    given: dict[str, Any] = {name: pipeline.denoiser, "torch_dtype": dtype}
    encoders = load_encoders(folder, pipeline.reference.id, dtype, pipeline.device, progress)
    given |= dict.fromkeys(pipeline.reference.left_out) | encoders
    whole = DiffusionPipeline.from_pretrained(folder, **given)
    for part, model in whole.components.items():
        if isinstance(model, nn.Module) and part != name and part not in encoders:
            model.to(pipeline.device)
    if any(next(model.parameters()).is_meta for model in encoders.values()):
        whole.__class__ = _on(type(whole), pipeline.device)
    return whole


def _on(cls: type, device: torch.device) -> type:
    """A pipeline class on `device`: by itself a pipeline is where its first part lies, and layers in files lie
    nowhere."""
    here = property(lambda _: device)
    return type(cls.__name__, (cls,), {"device": here, "_execution_device": here})
