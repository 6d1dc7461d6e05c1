"""What all students of one evaluation share: protocol, teacher, feature space, real images, prompts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from diffcompress import recipe as recipes
from diffcompress.errors import UsageError
from diffcompress.evaluation.features import FeatureSpace, choose_space, image_shape, protocol_for
from diffcompress.evaluation.neighbours import FEWEST
from diffcompress.images import images
from diffcompress.images import prompts as prompting
from diffcompress.pipeline.encoding import with_prompts
from diffcompress.pipeline.load import LoadedPipeline, describe, load
from diffcompress.recipe import Recipe
from diffcompress.records.protocol import Protocol
from diffcompress.runtime import Progress, Runtime
from diffcompress.sources.fetch import fetch
from diffcompress.sources.reference import Reference


@dataclass(frozen=True)
class Asked:
    """What the user asked of the protocol; None: the default, which is that of the teacher's recipe."""

    num_samples: int | None
    sampler_steps: int | None
    seed: int
    data: str | None
    prompts: str | None


@dataclass(frozen=True)
class Setting:
    """What all students of one protocol share. model: the teacher, or without one the first student, with its prompts
    encoded; clean: the inputs of agreement with their conditioning, None for the teacher's own samples."""

    runtime: Runtime
    model: LoadedPipeline
    has_teacher: bool
    space: FeatureSpace | None
    clean: tuple[Tensor, Mapping[str, Tensor]] | None
    protocol: Protocol
    cache: Path
    progress: Progress

    @property
    def teacher(self) -> LoadedPipeline | None:
        return self.model if self.has_teacher else None

    def alike(self, student: LoadedPipeline) -> LoadedPipeline:
        """`student`, asked with the same prompts; it may have come without text encoders."""
        return replace(student, conditions=self.model.conditions) if student.takes_text else student


def prepare(
    runtime: Runtime,
    student: LoadedPipeline,
    teacher: LoadedPipeline | None,
    space: FeatureSpace | None,
    asked: Asked,
    cache: Path,
    progress: Progress,
) -> Setting:
    """The protocol of `student`'s data format: feature space, real images, prompts, sampling.

    Raises UsageError where the space, the images or the prompts do not fit.
    """
    model = teacher or student
    shape = image_shape(model)
    space = choose_space(model, progress, space)
    if space is not None and (why := space.why_unfit(shape)) is not None:
        raise UsageError(
            f"the feature extractor '{space.name}' does not fit: {why}",
            "leave out --feature-weights, or name an extractor of the student's data format",
        )
    recipe = _recipe(model.reference)
    num_samples = asked.num_samples or recipe.evaluation.num_samples
    num_images = max(num_samples, Protocol.agreement_images)
    if texts := texts_for(model, recipe, asked.data, asked.prompts, progress, num_images):
        writable(cache)
        model = with_prompts(model, texts, cache / "conditions", runtime, progress, recipe.bank.text_length)
    clean, digest = None, None
    if asked.data is not None:
        real = _real_images(asked.data, model, num_images, progress)
        clean, digest = _as_inputs(model, real), real.digest
        if space is not None:
            space.extractor.to(runtime.device)
            space = space.measured_to(real.parts(), digest)
    protocol = protocol_for(
        space,
        model,
        num_samples=num_samples,
        sampler_steps=asked.sampler_steps or recipe.evaluation.sampler_steps,
        guidance=recipe.evaluation.guidance,
        agreement_clean="teacher samples" if digest is None else "data",
        reference=digest,
        seed=asked.seed,
    )
    return Setting(runtime, model, teacher is not None, space, clean, protocol, cache, progress)


def fetched(reference: Reference, runtime: Runtime, progress: Progress) -> LoadedPipeline:
    """A model of any place, with all parts of its pipeline here, at the size that its recipe samples."""
    fetch(reference, progress)
    return load(reference, runtime.device, sample_size=_recipe(reference).bank.sample_size)


def _recipe(reference: Reference) -> Recipe:
    """The recipe that `shrink` takes for a teacher: evaluated alone or after a run, the protocol is the same."""
    return recipes.load(recipes.default_for(reference.id, describe(reference)[0].recipe))


def writable(folder: Path, option: str = "--output") -> None:
    """Make `folder`; raises UsageError when it cannot be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UsageError(f"cannot write to {folder}: {error.strerror}", f"choose another {option}") from error


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


def _real_images(data: str, model: LoadedPipeline, num_images: int, progress: Progress) -> images.Images:
    real = images.read_for(data, model, model.conditions.texts, num_images, progress)
    real.tell(progress)
    if len(real) < FEWEST:
        raise UsageError(
            f"{len(real)} real images in '{data}' are too few to compare with",
            f"give {FEWEST} or more with --data; thousands make distances mean something",
        )
    return real


def _as_inputs(model: LoadedPipeline, real: images.Images) -> tuple[Tensor, Mapping[str, Tensor]]:
    """The first images as the denoiser's clean samples, with their conditioning."""
    clean, index = real.pixels(0, Protocol.agreement_images), real.index[: Protocol.agreement_images]
    return model.codec.encode(clean) if model.codec else clean, model.conditions.rows(index)
