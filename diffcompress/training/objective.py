"""What one training step computes: the student's prediction and the weighted losses of a stage."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from functools import partial

import torch
from diffusers import ModelMixin
from jaxtyping import Float
from torch import Tensor, nn

from diffcompress import losses
from diffcompress.bank.batch import Batch
from diffcompress.families.base import Family
from diffcompress.losses.reduction import Scalar
from diffcompress.losses.step import Step, term_of
from diffcompress.losses.terms import ReduceMean
from diffcompress.noise.process import Sample, Timesteps
from diffcompress.pipeline.conditions import as_dtype
from diffcompress.pipeline.load import LoadedPipeline
from diffcompress.recipe import StageSection
from diffcompress.runtime import computes_bfloat16

Whole = Float[Tensor, "batch outputs *spatial"]
Feature = Float[Tensor, "batch ..."]
# A U-Net of no more channels at full resolution gains nothing from having them last.
FEW_CHANNELS = 16


class Trainee(nn.Module):
    """The student, and the adapters of feature KD when a stage asks for them, in one module for the process group.

    precision: "bfloat16" runs the student under autocast where the device computes in it; its weights stay float32.
    """

    def __init__(
        self, student: ModelMixin, family: Family, adapters: nn.Module | None = None, *, precision: str = "float32"
    ) -> None:
        super().__init__()
        self.student = _laid_out(student)
        self.family, self.adapters, self.precision = family, adapters, precision

    def forward(
        self, noisy: Sample, timestep: Timesteps, conditioning: Mapping[str, Tensor]
    ) -> tuple[Whole, list[Feature]]:
        """In float32: the prediction with its learned variance, and block outputs as wide as the teacher's.

        Encoded prompts may come in half precision.
        """
        conditioning = as_dtype(conditioning, noisy.dtype)
        mixed = self.precision == "bfloat16" and computes_bfloat16(noisy.device)
        with torch.autocast(noisy.device.type, torch.bfloat16) if mixed else contextlib.nullcontext():
            if self.adapters is None:
                return self.family.predict(self.student, noisy, timestep, conditioning).float(), []
            with FeatureTap(self.student, self.family) as tap:
                prediction = self.family.predict(self.student, noisy, timestep, conditioning)
            return prediction.float(), [feature.float() for feature in self.adapters(tap.features)]


def _laid_out(student: ModelMixin) -> ModelMixin:
    """Channels last in memory where convolutions compute faster so: not with few channels (docs/benchmarks.md)."""
    widths = student.config.get("block_out_channels")
    pays = widths is not None and widths[0] > FEW_CHANNELS
    if not pays:
        return student
    return nn.Module.to(student, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's hints leave it out


class FeatureTap:
    """Collects the features of a model's blocks during one forward."""

    def __init__(self, model: nn.Module, family: Family) -> None:
        self.model, self.family, self.names = model, family, family.blocks(model)
        self._features: dict[str, Tensor] = {}

    @property
    def features(self) -> list[Tensor]:
        """`[B, C, *positions]` of each block, in order; a shallow student has some of its blocks twice."""
        return [self._features[name] for name in self.names]

    def __enter__(self) -> FeatureTap:
        self._handles = [
            self.model.get_submodule(name).register_forward_hook(
                lambda _m, _i, output, name=name: self._features.update({name: self.family.feature(output)})
            )
            for name in dict.fromkeys(self.names)
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()


def make_adapters(student: ModelMixin, teacher: LoadedPipeline, seed: int) -> losses.Adapters:
    """Adapters between the block outputs of student and teacher, widths found by one forward of each.

    Their first weights follow from `seed` alone. Raises ValueError when the two do not have the same blocks.
    """
    family = teacher.family
    widths = []
    for model in (student, teacher.denoiser):
        given = as_dtype(teacher.example_inputs(), model.dtype)
        with torch.no_grad(), FeatureTap(model, family) as tap:
            family.predict(model, given.pop("noisy"), given.pop("timestep"), given)
        widths.append([feature.shape[1] for feature in tap.features])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return losses.Adapters(*widths)


def freeze_unused(trainee: Trainee, inputs: dict[str, Tensor]) -> None:
    """No gradients for parameters that no output depends on, as in the last text stream of Qwen-Image.

    They would stay without one anyway, and a process group waits for the gradient of every other. inputs: noisy,
    timestep and conditioning.
    """
    prediction, features = trainee(inputs.pop("noisy"), inputs.pop("timestep"), inputs)
    total = prediction.sum() + sum(feature.sum() for feature in features)
    parameters = list(trainee.parameters())
    for parameter, gradient in zip(parameters, torch.autograd.grad(total, parameters, allow_unused=True), strict=True):
        parameter.requires_grad_(gradient is not None)


def step_losses(
    trainee: nn.Module, teacher: LoadedPipeline, batch: Batch, stage: StageSection, reduce_mean: ReduceMean
) -> tuple[Scalar, dict[str, Scalar]]:
    """The stage's total loss on `batch`, with gradient, and detached terms for the log."""
    whole, features = trainee(batch.noisy, batch.timestep, batch.conditioning)
    channels = batch.noisy.shape[1]
    learned = whole.shape[1] > channels
    step = Step(
        prediction=whole[:, :channels],
        target=batch.prediction[:, :channels],
        variance=(whole[:, channels:], batch.prediction[:, channels:]) if learned else None,
        diffusion_target=batch.diffusion_target,
        features=features,
        teacher_features=partial(_teacher_features, teacher, batch),
        knobs=stage.model_dump(),
        reduce_mean=reduce_mean,
    )
    weights = {name: weight for name, weight in stage.weights.model_dump().items() if weight > 0}
    computed = {name: term_of(name)(step) for name in weights}
    terms = {name: term for name, term in computed.items() if term is not None}
    total, log = losses.combine(terms, {name: weights[name] for name in terms})
    # A process group waits for a gradient of every adapter, of those that the stage does not use, too.
    return total + sum(0.0 * feature.sum() for feature in features), log


def _teacher_features(teacher: LoadedPipeline, batch: Batch) -> list[Feature]:
    with torch.no_grad(), FeatureTap(teacher.denoiser, teacher.family) as tap:
        teacher.predict(batch.noisy, batch.timestep, batch.conditioning)
    return tap.features
