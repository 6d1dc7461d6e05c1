"""What all students of one evaluation are measured with: protocol, teacher, feature space, real images, prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from diffcompress import recipe as recipes
from diffcompress.errors import UsageError
from diffcompress.evaluation import interval
from diffcompress.evaluation.cache import SampleCache
from diffcompress.evaluation.extractors import ADVICE
from diffcompress.evaluation.features import FeatureSpace, choose_space, image_shape, protocol_for
from diffcompress.evaluation.neighbours import FEWEST
from diffcompress.evaluation.score import Contest
from diffcompress.families import registry
from diffcompress.images import images
from diffcompress.images.texts import held_out_texts, texts_for
from diffcompress.pipeline.encoding import with_prompts
from diffcompress.pipeline.load import LoadedPipeline, describe, load
from diffcompress.recipe import Recipe
from diffcompress.records import layout
from diffcompress.records.protocol import AGREEMENT_IMAGES, Protocol
from diffcompress.records.request import EvaluateOptions
from diffcompress.records.run_files import writable
from diffcompress.runtime import Progress, Runtime
from diffcompress.sources.fetch import fetch
from diffcompress.sources.reference import Reference
from diffcompress.student import costs


@dataclass(frozen=True)
class Testbed:
    """model: the teacher, or without one the first student, with its prompts encoded; clean: the inputs of agreement
    with their conditioning, None for the teacher's own samples."""

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

    @property
    def samples(self) -> SampleCache:
        """Where drawn samples stay."""
        return SampleCache(self.cache, self.runtime, self.progress)

    def precise(self, share: float, num_samples: int | None, students: Sequence[LoadedPipeline]) -> Testbed:
        """With as many samples as the interval takes, `num_samples` at most. Raises UsageError where there is no
        distance to have one."""
        contests = [self.contest(student) for student in students]
        most = num_samples or interval.MOST_SAMPLES
        if (why := interval.why_not(contests[0], most)) is not None:
            raise UsageError(f"--interval is of a distance: {why}", "leave it out" if self.space else ADVICE)
        writable(self.cache)
        return replace(self, protocol=interval.precise(contests, share, most, self.samples))

    def contest(self, student: LoadedPipeline, untrained: LoadedPipeline | None = None) -> Contest:
        """`student` beside the teacher, and beside itself before training."""
        beside = None if untrained is None else self.alike(untrained)
        return Contest(self.alike(student), self.teacher, self.protocol, self.space, beside)

    def alike(self, student: LoadedPipeline) -> LoadedPipeline:
        """`student`, asked with the same prompts; it may have come without text encoders."""
        return replace(student, conditions=self.model.conditions) if student.takes_text else student


def prepare(
    runtime: Runtime,
    student: LoadedPipeline,
    teacher: LoadedPipeline | None,
    space: FeatureSpace | None,
    asked: EvaluateOptions,
    cache: Path,
    progress: Progress,
) -> Testbed:
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
    recipe, data = _recipe(model.reference), None if asked.data is None else str(asked.data)
    num_samples = asked.num_samples or recipe.evaluation.num_samples
    num_images = max(num_samples, AGREEMENT_IMAGES)
    if texts := texts_for(model, recipe, data, asked.prompts, progress, num_images):
        texts = held_out_texts(model, data, asked.prompts, texts) or texts
        writable(cache)
        model = with_prompts(model, texts, cache / layout.CONDITIONS, runtime, progress, recipe.bank.text_length)
    clean, digest = None, None
    if data is not None:
        real = _real_images(data, model, num_images, progress)
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
    return Testbed(runtime, model, teacher is not None, space, clean, protocol, cache, progress)


def fetched(
    reference: Reference, runtime: Runtime, progress: Progress, like: LoadedPipeline | None = None
) -> LoadedPipeline:
    """A model of any place, with all parts of its pipeline here, at the size that its recipe samples.

    like: another that it is compared with, so that both compute in one precision.
    """
    fetch(reference, progress)
    size, precision = _recipe(reference).bank.sample_size, None if like is None else like.precision

    def call() -> int:
        family = registry.find(reference.class_name)
        return costs.count(family, reference.complete_config).call

    model = load(reference, runtime.device, sample_size=size, precision=precision, progress=progress, beside=call)
    if model.placed is not None:
        progress.note(model.placed)
    return model


def _recipe(reference: Reference) -> Recipe:
    """The recipe that `shrink` takes for a teacher: evaluated alone or after a run, the protocol is the same
    but for the number of samples, which a run keeps in proportion."""
    return recipes.load(recipes.default_for(reference.id, describe(reference)[0].recipe))


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
    clean, condition = real.pixels(0, AGREEMENT_IMAGES), real.condition[:AGREEMENT_IMAGES]
    return model.codec.encode(clean) if model.codec else clean, model.conditions.rows(condition)
