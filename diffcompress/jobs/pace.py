"""How fast a device goes through a run: by a short timing of the models, or by its maker's data sheet."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
from torch import Tensor, nn

from diffcompress.bank.batch import Batch
from diffcompress.jobs.cards import Card
from diffcompress.jobs.students import taught_family
from diffcompress.pipeline.codec import Codec
from diffcompress.pipeline.load import LoadedPipeline
from diffcompress.pipeline.sampling import automatic_batch_size
from diffcompress.recipe import Recipe
from diffcompress.runtime import seconds_of
from diffcompress.student.costs import Costs
from diffcompress.student.size import build
from diffcompress.student.student_plan import StudentPlan
from diffcompress.training import micro
from diffcompress.training.ema import Ema
from diffcompress.training.objective import Trainee, freeze_unused, make_adapters, step_losses
from diffcompress.training.optim import Optimizer

# What is timed is as large as takes so long, and timed so often; once where it takes far longer.
LONG_SECONDS, TOO_LONG_SECONDS, REPEATS = 0.05, 1.0, 3
# Latents that are decoded at once, and the largest side of one for a timing.
CODEC_ROWS, MOST_SIDE = 8, 16
PASSES = 3  # forward and backward, in calls
# Of what a card's data sheet promises, what denoisers get; no card was at hand to measure it.
SHARE_OF_PEAK = 0.3
# What a host needs at least to start a step's operations, for each tensor (docs/benchmarks.md: 3 to 8 operations).
SECONDS_A_TENSOR = 5e-5


@dataclass(frozen=True)
class Pace:
    """Seconds on `device`. teacher, student: of one sample in a call; step: of one update; picture: of one sample's
    pixels from its latents; measured: whether models were timed there."""

    device: str
    measured: bool
    teacher: float
    student: float
    step: float
    picture: float = 0.0


def of_card(card: Card, teacher: int, student: Costs, batch_size: int, *, recomputed: bool) -> Pace:
    """By the data sheet; teacher: multiply-accumulates of one call at batch 1; recomputed: whether a step computes
    activations twice."""
    rate = SHARE_OF_PEAK * card.tflops * 1e12 / 2
    step = max((PASSES + recomputed) * batch_size * student.macs / rate, SECONDS_A_TENSOR * len(student.shapes))
    return Pace(card.name, False, teacher / rate, student.macs / rate, step)


@contextlib.contextmanager
def _own_draws(device: torch.device) -> Iterator[None]:
    """Whoever draws random numbers goes on as if nothing had been timed."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield


def timed_teacher(teacher: LoadedPipeline, codec: Codec | None) -> tuple[float, float]:
    """Seconds of one sample in a call, and of its pixels where `codec` decodes them; by a few of each."""
    device = teacher.device
    with _own_draws(device):
        called = _of_a_row(lambda rows: _call(teacher, rows), automatic_batch_size(teacher), device)
        return called, 0.0 if codec is None else _picture(codec, teacher.sample_shape, device)


def timed(
    teacher: LoadedPipeline, seconds: tuple[float, float], plan: StudentPlan, recipe: Recipe, batch_size: int
) -> Pace:
    """By a few calls and steps of a student with random weights, of which nothing is left.

    seconds: of the teacher (`timed_teacher`); batch_size: of one process.
    """
    device, most = teacher.device, automatic_batch_size(teacher)
    with _own_draws(device):
        student = nn.Module.to(build(teacher.family, plan.config, "cpu"), device)
        trainee = Trainee(student, taught_family(teacher, plan), precision=recipe.training.precision).train()
        step = _step(trainee, teacher, recipe, batch_size)
        with torch.no_grad():
            drawn = _of_a_row(lambda rows: _predicted(trainee.eval(), teacher, rows), most, device)
    return Pace(_name(device), True, seconds[0], drawn, step, seconds[1])


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"this {device.type.upper()}" + (f" ({threads} thread{'s' * (threads > 1)})" if device.type == "cpu" else "")


@torch.no_grad()
def _call(teacher: LoadedPipeline, rows: int) -> Tensor:
    noisy, timestep, conditioning = _inputs(teacher, rows)
    return teacher.predict_all(noisy, timestep, conditioning)


def _predicted(trainee: Trainee, teacher: LoadedPipeline, rows: int) -> Tensor:
    whole: Tensor = trainee(*_inputs(teacher, rows))[0]
    return whole


def _inputs(teacher: LoadedPipeline, rows: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Of zeros some kernels make short work."""
    index = torch.zeros(rows, dtype=torch.long)
    conditioning = {name: value.to(teacher.device) for name, value in teacher.conditions.rows(index).items()}
    timestep = teacher.noise.at(torch.full((rows,), 0.5)).to(teacher.device)
    return torch.randn(rows, *teacher.sample_shape).to(teacher.device), timestep, conditioning


def _picture(codec: Codec, shape: tuple[int, ...], device: torch.device) -> float:
    """Seconds that decoding a latent takes; of a large one a piece is timed."""
    piece = (*shape[:-2], *(min(side, MOST_SIDE) for side in shape[-2:]))
    seconds = _of_a_row(lambda count: codec.decode(torch.randn(count, *piece)), CODEC_ROWS, device)
    return seconds * math.prod(shape) / math.prod(piece)


def _step(trainee: Trainee, teacher: LoadedPipeline, recipe: Recipe, batch_size: int) -> float:
    """Seconds of one step of the stage that has most of them."""
    section, stage = recipe.training, max(recipe.stages, key=lambda one: one.num_steps)
    if stage.weights.feature_kd:
        trainee.adapters = make_adapters(trainee.student, teacher, recipe.seed).to(teacher.device)
    freeze_unused(trainee, teacher.example_inputs())
    if section.recompute:
        trainee.student.enable_gradient_checkpointing()
    fit = micro.fit(trainee, teacher, stage, teacher.device)
    if fit.recompute:
        trainee.student.enable_gradient_checkpointing()
    size = section.micro_batch_size or fit.part(batch_size)
    with torch.no_grad():
        target = torch.randn_like(_predicted(trainee, teacher, size))
    noisy, timestep, conditioning = _inputs(teacher, size)
    batch = Batch(noisy, timestep, target, torch.randn_like(noisy), conditioning)
    optimizer, average = Optimizer(trainee, section), Ema(trainee, 1.0)

    def passes() -> None:
        step_losses(trainee, teacher, batch, stage, lambda value: value)[0].backward()

    def update() -> None:
        torch.nn.utils.clip_grad_norm_(optimizer.parameters, section.max_grad_norm, foreach=True)
        optimizer.step(0.0)
        average.update(0)

    return batch_size / size * _seconds(passes, teacher.device) + _seconds(update, teacher.device)


def _of_a_row(call: Callable[[int], object], most: int, device: torch.device) -> float:
    """Seconds of one of `most` rows in a call, or of as many as take LONG_SECONDS."""
    rows = 1
    call(rows)  # warms up
    while (took := seconds_of(partial(call, rows), device)) < LONG_SECONDS and rows < most:
        rows = min(2 * rows, most)
    return _repeated(took, partial(call, rows), device) / rows


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    call()
    return _repeated(seconds_of(call, device), call, device)


def _repeated(took: float, call: Callable[[], object], device: torch.device) -> float:
    """The median of a few calls, of which the first `took` so long; of that one alone where they are endless."""
    if took > TOO_LONG_SECONDS:
        return took
    return median([took, *(seconds_of(call, device) for _ in range(REPEATS - 1))])
