"""How many samples an evaluation draws, so that it stays in proportion to the training before it.

Counted in multiply-accumulates of denoiser calls, never in seconds: the same run draws as many on every machine, and
after every stop.
"""

from __future__ import annotations

from dataclasses import dataclass

from diffcompress.evaluation import correction, own_states
from diffcompress.evaluation.features import FeatureSpace, aside
from diffcompress.recipe import Recipe
from diffcompress.records.protocol import Protocol

# Of the training, at most; its forward and backward pass are three calls.
SHARE, PASSES = 0.25, 3
# With fewer, intervals say little, and a Frechet distance is mostly its bias, whatever the training cost.
FEWEST, FEWEST_PER_FEATURE = 256, 8
STEP = 64
# That predictions are compared on, where samples are fewer, and where as few as there may be still cost too much.
FEWER_IMAGES, FEWEST_IMAGES = 64, 16


@dataclass(frozen=True)
class Calls:
    """student, teacher: what one call costs, in multiply-accumulates or any other unit; drawn: whether the teacher's
    samples are there already, and those for the probe; picture: what the pixels of one latent cost."""

    student: float
    teacher: float
    drawn: bool
    picture: float = 0.0

    def evaluation(self, protocol: Protocol) -> float:
        """Cost of all calls that `protocol` asks for, and of the pictures that latents are decoded to."""
        count, levels = protocol.num_samples, protocol.agreement_images * protocol.agreement_levels
        each = protocol.sampler_steps * (1 if protocol.guidance == 1 else 2)
        sampled = count * (self.student + (0 if self.drawn else self.teacher))
        beside = 2 * (protocol.aside_samples or count)
        sampled += beside * self.student
        lines = min(correction.NUM_IMAGES, count)
        fitted = lines * protocol.sampler_steps * (self.teacher + self.student)
        fitted += 0 if self.drawn else lines * each * self.teacher
        walked = 2 * own_states.count(protocol) * each * (self.teacher + self.student)
        shown = self.picture * (count * (1 if self.drawn else 2) + beside + lines)
        return each * sampled + fitted + walked + shown + levels * (self.teacher + 2 * self.student)

    def training(self, recipe: Recipe) -> float:
        """Of the student's steps alone."""
        return PASSES * self.student * recipe.training.batch_size * recipe.num_steps


def of_count(protocol: Protocol, count: int, space: FeatureSpace | None) -> Protocol:
    """`protocol` of another number of samples."""
    return protocol.model_copy(update={"num_samples": count, "aside_samples": aside(count, space)})


def in_proportion(protocol: Protocol, recipe: Recipe, space: FeatureSpace | None, calls: Calls) -> Protocol:
    """`protocol`, or one of fewer samples that costs a quarter of the training: FEWEST at least, and FEWEST_PER_FEATURE
    of `space` where there were as many. Where samples are fewer, predictions are compared on fewer images too."""
    if recipe.evaluation.interval is not None:  # which decides it, whatever that costs
        return protocol
    most, least = protocol.num_samples, FEWEST
    if space is not None and most >= FEWEST_PER_FEATURE * space.dimension:
        least = max(least, FEWEST_PER_FEATURE * space.dimension)
    room = SHARE * calls.training(recipe)
    if most <= least or calls.evaluation(protocol) <= room:
        return protocol
    counts = [*range((most - 1) // STEP * STEP, least, -STEP), least]
    for count, images in [*((count, FEWER_IMAGES) for count in counts), (least, FEWEST_IMAGES)]:
        images = min(images, protocol.agreement_images)
        fewer = of_count(protocol, count, space).model_copy(update={"agreement_images": images})
        if calls.evaluation(fewer) <= room:
            break
    return fewer
