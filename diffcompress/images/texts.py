"""What a text-conditional model is asked: captions of the user's images, their prompts, or our own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from diffcompress.errors import UsageError
from diffcompress.images import images
from diffcompress.images import prompts as prompting
from diffcompress.pipeline.load import LoadedPipeline
from diffcompress.recipe import Recipe
from diffcompress.runtime import Progress


def held_out_texts(model: LoadedPipeline, data: str | None, prompts: str | None, taught: Sequence[str]) -> list[str]:
    """What students of a text-conditional model are judged by, and none of what they are `taught`; nothing where the
    user says what to ask, where a demo brings few prompts, and for other models."""
    if not model.takes_text or data is not None or prompts is not None:
        return []
    return prompting.held_out_for(model.reference, taught)


def texts_for(
    model: LoadedPipeline,
    recipe: Recipe,
    data: str | None,
    prompts: str | None,
    progress: Progress | None = None,
    num_images: int | None = None,
) -> list[str]:
    """What a text-conditional model is asked: the captions of the user's images, their prompts, or our own; nothing
    for other models. num_images: of the user's, default as many as the bank holds. Raises UsageError for prompts
    without use, and for captions or prompts that cannot be read; AccessError where the Hub refuses."""
    if not model.takes_text:
        if prompts is not None:
            raise UsageError(f"--prompts {prompts}, but '{model.reference.id}' takes no text", "leave --prompts out")
        return []
    progress = progress or Progress()
    if data is not None:
        if prompts is not None:
            progress.warn(f"--prompts {prompts} is not used: the captions of --data are the prompts")
        if captions := images.captions_of(data, num_images or recipe.bank.num_samples, progress):
            return captions
        raise UsageError(
            f"no image of '{data}' has a caption, and '{model.reference.id}' is text-conditional",
            "give captioned images",
        )
    if prompts is not None:
        limit = num_images or recipe.bank.num_samples
        texts = prompting.read(Path(prompts), progress)
        if len(texts) > limit:
            progress.note(
                f"{limit:,} of the {len(texts):,} prompts in '{prompts}' are taken, in one fixed mixed order: no more "
                "samples are drawn (bank.num_samples of shrink, --num-samples of evaluate)"
            )
        return images.mixed(texts, limit)[:limit]
    return prompting.default_for(model.reference, recipe.bank.num_prompts, progress)
