"""The denoiser as one file in the layout of its authors, which programs other than diffusers read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from safetensors.torch import save_file

from diffcompress.errors import DiffCompressError, UsageError
from diffcompress.sources import single_file
from diffcompress.sources.original_shapes import limit
from diffcompress.sources.originals import marks, to_original
from diffcompress.sources.state import StoredState


def check_shape(class_name: str, config: Mapping[str, Any], asked: str = "export.original") -> None:
    """Raise UsageError for a student whose shape a file in the original layout cannot say. asked: a recipe's value."""
    if (why := limit(class_name, config)) is not None:
        raise UsageError(
            f"{asked} cannot write this student: {why}",
            f"--set {asked}=false goes on without it; docs/families.md says which shapes such a file can say",
        )


def export_original(
    denoiser: ModelMixin, class_name: str, scheduler: Mapping[str, Any], header: Mapping[str, str], file: Path
) -> None:
    """Write `file` and read it again as a teacher would be; raises DiffCompressError unless all tensors are equal."""
    config = {**denoiser.config, "_class_name": class_name}
    state = denoiser.state_dict()
    save_file(to_original(state, config) | marks(scheduler), file, dict(header))
    again = single_file.convert(StoredState([file]), config)
    if set(again) != set(state) or not all(torch.equal(again[name], value) for name, value in state.items()):
        raise DiffCompressError(
            f"{file.name} does not hold what the student does when it is read again",
            "keep the run folder and report this as a bug; --set export.original=false goes on without it",
        )
