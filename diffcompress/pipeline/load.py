"""Load a reference into a LoadedPipeline: teachers, and students in `evaluate`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import diffusers
import torch
from accelerate import init_empty_weights
from diffusers import ModelMixin
from torch import Tensor, nn

from diffcompress.errors import UsageError
from diffcompress.families import registry
from diffcompress.families.base import Family
from diffcompress.noise import NoiseProcess, from_scheduler, generator, streams
from diffcompress.pipeline import checks, placing
from diffcompress.pipeline import precision as precisions
from diffcompress.pipeline.codec import Codec, load_codec
from diffcompress.pipeline.conditions import Conditions, as_dtype, without_text
from diffcompress.records import fingerprints, units
from diffcompress.runtime import Progress, dtype_name, exact_float32, free_memory
from diffcompress.sources.assembly import assembled
from diffcompress.sources.model_index import check_config
from diffcompress.sources.reference import Reference
from diffcompress.sources.weights import (
    TeacherState,
    check_state,
    fingerprint,
    open_headers,
    open_state,
    require_parts,
)

# Of float32 weights, what a device must have free to hold half-precision ones against them: two samples take the rest.
CHECK_ROOM = 1.25


@dataclass(frozen=True)
class LoadedPipeline:
    """A denoiser in evaluation mode, in the `precision` of its device, with all that sampling from it takes.

    dtype: of the stored weights (the default for exports); fingerprint: SHA-256 over configs and weights; sample_shape:
    of one clean sample; conditions: what samples are conditioned on, empty for a text denoiser until its prompts are
    encoded (`encoding.with_prompts`); placed: what a person should know of weights that `device` does not hold, in a
    sentence; None where it holds all; parted: whether it holds them, but not beside the student that trains, so that
    they `leave` then.
    """

    reference: Reference
    family: Family
    denoiser: ModelMixin
    noise: NoiseProcess
    dtype: torch.dtype
    fingerprint: str
    sample_shape: tuple[int, ...]
    conditions: Conditions
    placed: str | None = None
    parted: bool = False

    def leave(self) -> None:
        """Give up the device's memory until the next prediction."""
        placing.leave(self.denoiser, self.device)

    @property
    def config(self) -> Mapping[str, Any]:
        """The denoiser's config, complete."""
        return self.reference.complete_config

    @property
    def device(self) -> torch.device:
        return placing.device_of(self.denoiser)

    @property
    def precision(self) -> torch.dtype:
        """What the denoiser computes in, but for parts that its class wants in float32."""
        return self.denoiser.dtype  # type: ignore[return-value]

    @property
    def takes_text(self) -> bool:
        return bool(self.family.text_conditioning(self.config))

    @cached_property
    def codec(self) -> Codec | None:
        """What turns latents into pixels and back; None where samples are pixels, or no autoencoder came along."""
        return load_codec(self.reference, self.device)

    def example_inputs(self, batch: int = 1) -> dict[str, Tensor]:
        """noisy, timestep and conditioning tensors of this pipeline's interface, sample shape and device."""
        with torch.device(self.device):
            inputs = self.family.example_inputs(self.config, batch)
            return inputs | {"noisy": torch.zeros(batch, *self.sample_shape)}

    @property
    def apart(self) -> LoadedPipeline:
        """This model, asked for what nothing is taught on (`Conditions.apart`)."""
        return replace(self, conditions=self.conditions.apart) if self.conditions.held_out else self

    def predict(self, noisy: Tensor, timestep: Tensor, conditioning: Mapping[str, Tensor]) -> Tensor:
        """The prediction `[B, C, *spatial]` in float32, without a learned variance. Timesteps keep their precision."""
        return self.predict_all(noisy, timestep, conditioning)[:, : noisy.shape[1]]

    def predict_all(self, noisy: Tensor, timestep: Tensor, conditioning: Mapping[str, Tensor]) -> Tensor:
        """`[B, C or 2C, *spatial]` in float32: the prediction, and the learned variance where there is one."""
        dtype = self.precision
        return self.family.predict(self.denoiser, noisy.to(dtype), timestep, as_dtype(conditioning, dtype)).float()

    @torch.no_grad()
    def examples(self) -> Tensor:
        """Predictions `[SHARES, SAMPLES, C, *spatial]` (`precision`) of random inputs, the same each time."""
        own, count = generator(streams.PRECISION), precisions.SAMPLES

        def random(value: Tensor) -> Tensor:
            return torch.randn(value.shape, generator=own) if value.is_floating_point() else value.cpu()

        inputs = {n: random(v).to(self.device) for n, v in self.example_inputs(count).items() if n != "timestep"}
        noisy = inputs.pop("noisy")
        times = [self.noise.at(torch.full((count,), share)).to(self.device) for share in precisions.SHARES]
        return torch.stack([self.predict(noisy, timestep, inputs) for timestep in times])


def describe(reference: Reference) -> tuple[Family, NoiseProcess]:
    """Family and noise process from configs alone; raises UsageError for what cannot be distilled."""
    family = registry.find(reference.class_name)
    check_config(reference.config, reference.id)
    checks.check_pipeline(reference, family)
    config = reference.complete_config
    try:
        tokens = family.num_tokens(config, family.sample_shape(config))
    except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError) as error:
        raise UsageError(
            f"the config of '{reference.id}' makes no sense to {family.class_name}: {type(error).__name__} {error}",
            "compare it with the config.json that save_pretrained made",
        ) from error
    try:
        return family, from_scheduler(reference.scheduler, tokens)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise UsageError(
            f"'{reference.id}' cannot be distilled: {error}",
            "DDPM-type teachers (epsilon, sample or v prediction) and flow-matching teachers can",
        ) from error


def load(
    reference: Reference,
    device: torch.device | str = "cpu",
    *,
    sample_size: int | None = None,
    precision: torch.dtype | None = None,
    progress: Progress | None = None,
    beside: Callable[[], int] = lambda: 0,
    asked: Callable[[], int] | None = None,
) -> LoadedPipeline:
    """Read the weights of `reference`, downloaded first when they lie on the Hub.

    sample_size: height and width of samples (of latents, for latent models); None: as its pipeline makes them.
    precision: to compute in, None for what suits the device (`precision.choose`), which a few calls are held against
    float32 for where that fits; the progress is told. beside: bytes of what the device must hold beside the weights,
    which stay in their files where it cannot (`placing`); asked: of what it must hold beside them as long as they are
    asked, if they may leave then. Raises
    UsageError when weights are missing, truncated, of other shapes, not finite, or pickled beyond a state dict;
    AccessError when the Hub refuses.
    """
    reference = assembled(reference)
    family, noise = describe(reference)
    state = open_state(reference)
    denoiser = hollow(family, reference.config, reference.id)
    check_state(state, denoiser)
    shape = family.sample_shape(reference.complete_config)
    if sample_size is not None:
        shape = (*shape[:-2], sample_size, sample_size)
        noise = from_scheduler(reference.scheduler, family.num_tokens(reference.complete_config, shape))
    pipeline = LoadedPipeline(
        reference,
        family,
        denoiser,
        noise,
        state.dtype,
        fingerprint(reference, state.files),
        shape,
        without_text(family, reference.complete_config),
    )
    return _filled(pipeline, state, torch.device(device), precision, progress or Progress(), beside, asked)


def _filled(
    pipeline: LoadedPipeline,
    state: TeacherState,
    device: torch.device,
    precision: torch.dtype | None,
    progress: Progress,
    beside: Callable[[], int],
    asked: Callable[[], int] | None,
) -> LoadedPipeline:
    """`pipeline` with weights in its hollow denoiser: on `device`, or as far as that holds them."""
    denoiser = pipeline.denoiser
    params = sum(p.numel() for p in denoiser.parameters())
    chosen = precision or precisions.choose(device, state.dtype, params)
    precisions.cast(denoiser, chosen)
    free, name = free_memory(device), f"'{pipeline.reference.id}'"
    rooms, parted = placing.rooms(denoiser, state, device, free, beside), False
    if rooms is not None and asked is not None and placing.may_leave(placing.held(denoiser, state, device), device):
        parted = placing.rooms(denoiser, state, device, free, asked) is None
    if rooms is not None and not parted:
        told = placing.place(denoiser, state, device, rooms)
        return replace(pipeline, placed=f"{name} does not fit in {units.size(free)} of free memory: {told}")
    _fill(pipeline, state, device, chosen, progress, checked=precision is None and chosen != torch.float32)
    if parted:
        progress.note(f"{name} leaves {device} while its student trains: {units.size(free)} do not hold both")
    return replace(pipeline, parted=parted)


def _fill(
    pipeline: LoadedPipeline,
    state: TeacherState,
    device: torch.device,
    chosen: torch.dtype,
    progress: Progress,
    *,
    checked: bool,
) -> None:
    """All weights into the denoiser of `pipeline`, on `device`; checked: in float32 where `chosen` differs too much."""
    denoiser, name = pipeline.denoiser, f"'{pipeline.reference.id}'"
    params = sum(p.numel() for p in denoiser.parameters())

    def fill(dtype: torch.dtype) -> None:
        # One precision for all of it: some classes are stored with a few tensors in another.
        tensors = {n: as_dtype({n: v}, precisions.dtype_of(denoiser, n, dtype))[n] for n, v in state.items()}
        denoiser.load_state_dict(tensors, assign=True)
        nn.Module.to(denoiser, device).eval().requires_grad_(False)

    if not checked:
        fill(chosen)
        return
    if free_memory(device) < CHECK_ROOM * 4 * params:
        fill(chosen)
        progress.note(f"{name} computes in {dtype_name(chosen)}, unchecked: {device} has no room for it in float32")
        return
    fill(torch.float32)
    with exact_float32():
        exact = pipeline.examples()
    precisions.cast(denoiser, chosen)
    apart = precisions.difference(pipeline.examples(), exact)
    if apart > precisions.MOST_ROUNDING:
        fill(torch.float32)
        progress.warn(
            f"{name} computes in float32: in {dtype_name(chosen)} its predictions of random inputs "
            f"are {100 * apart:.1f} % off, more than {100 * precisions.MOST_ROUNDING:g} %"
        )


def check_teacher(reference: Reference) -> str | None:
    """All that `plan` and `shrink` refuse before weights are read or downloaded, from configs, names and headers.

    Returns the dtype of most of the denoiser's tensors, None where headers do not tell. Raises UsageError where a run
    would, AccessError when the Hub refuses.
    """
    family, _ = describe(reference)
    checks.check_text(reference, family)
    if reference.pipeline is not None and reference.repository is None:
        require_parts(reference, (part for part in reference.parts if part != reference.denoiser_part))
    denoiser, state = hollow(family, reference.config, reference.id, buffers=False), open_headers(reference)
    if state is None:
        return None
    check_state(state, denoiser)
    return dtype_name(state.dtype)


def hollow(family: Family, config: Mapping[str, Any], where: object, *, buffers: bool = True) -> ModelMixin:
    """The denoiser that `config` builds: parameters without memory, but real `buffers`, as some are never stored, and
    take seconds to compute where nobody asks for more than shapes.

    Raises UsageError, with `where` it is from, for a config that builds none.
    """
    own = {k: v for k, v in config.items() if not k.startswith("_") and k != "quantization_config"}
    try:
        with init_empty_weights(include_buffers=False) if buffers else torch.device("meta"):
            built: ModelMixin = getattr(diffusers, family.class_name).from_config(own)
    except Exception as error:
        raise UsageError(
            f"the config of '{where}' does not build a {family.class_name}: {type(error).__name__} {error}",
            "compare it with the config.json that save_pretrained made",
        ) from error
    return built


def state_fingerprint(denoiser: nn.Module) -> str:
    """SHA-256 over the tensors of a denoiser in memory, to key what is sampled from it."""
    return fingerprints.of_tensors(denoiser.state_dict())
