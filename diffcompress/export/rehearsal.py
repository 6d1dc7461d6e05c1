"""Before any hours are spent: what will ship around the student is loaded, and draws, in diffusers alone."""

from __future__ import annotations

import contextlib
import copy
import errno
import gc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diffcompress.errors import DiffCompressError, UsageError, is_out_of_memory
from diffcompress.export import probe
from diffcompress.export.proof import drawing, why_no_image
from diffcompress.export.weights import write_rest
from diffcompress.pipeline.load import LoadedPipeline
from diffcompress.pipeline.whole import load_whole
from diffcompress.records.scratch import kept_for, scratch
from diffcompress.runtime import Progress

# One model's other parts, half-precision weights as float32.
ROOM = 2
_LONGEST_QUOTE = 200


def rehearse(teacher: LoadedPipeline, progress: Progress) -> Any:
    """Load the pipeline that the student will get, with the teacher's own denoiser, and draw one image in one step.

    Returns that pipeline where it has text encoders, which are needed again. Where an image cannot be drawn here (a
    long video, too little memory or disk) the progress is told. Raises UsageError when the pipeline does not load or
    does not draw, which the export would find out after the training.
    """
    try:
        with contextlib.ExitStack() as held:
            folder = held.enter_context(scratch("rehearsal"))
            write_rest(folder, teacher, borrow=True)
            why_not = why_no_image(folder, teacher, room=ROOM)
            if why_not is None:
                whole = _load_and_draw(teacher, folder, progress)
                return kept_for(whole, held) if teacher.takes_text else None
            if teacher.reference.pipeline is not None:
                progress.note(f"the teacher's own pipeline was not tried before the run: {why_not}")
    except (MemoryError, torch.OutOfMemoryError):
        progress.warn("the teacher's own pipeline was not tried before the run: it does not fit into memory")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        progress.warn("the teacher's own pipeline was not tried before the run: no space for temporary files")
    finally:
        gc.collect()
        if teacher.device.type == "cuda":
            torch.cuda.empty_cache()
    return None


def _load_and_draw(teacher: LoadedPipeline, folder: Path, progress: Progress) -> Any:
    reference, name = teacher.reference, teacher.family.subfolder
    if teacher.precision == torch.bfloat16 and teacher.codec is None:
        # What pipelines without an autoencoder make goes straight to numpy, which does not know bfloat16.
        teacher = replace(teacher, denoiser=nn.Module.float(copy.deepcopy(teacher.denoiser)))
    with _refused(
        f"the pipeline of '{reference.id}' cannot be loaded by diffusers alone",
        "the student would come with the same parts: check that they are complete and belong together",
    ):
        whole = load_whole(folder, teacher, teacher.precision, progress)
    with _refused(
        f"the pipeline of '{reference.id}' loads but does not draw, by {type(whole).__name__} of diffusers alone",
        "the student's would fail alike: check that scheduler, autoencoder and encoders belong to this denoiser",
    ):
        options = drawing(teacher)
        try:
            probe.draw(whole, name, options, num_steps=1)
        except (ValueError, IndexError):  # some solvers take no single step
            probe.draw(whole, name, options)
    return whole


@contextlib.contextmanager
def _refused(message: str, hint: str) -> Iterator[None]:
    """Turn whatever diffusers raises, of many kinds, into a UsageError."""
    try:
        yield
    except DiffCompressError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise MemoryError(_told(error)) from error
        raise UsageError(f"{message}: {_told(error)}", hint) from error


def _told(error: Exception) -> str:
    line = next(iter(str(error).strip().splitlines()), "")
    return f"'{line[:_LONGEST_QUOTE]}'" if line else type(error).__name__
