"""How important a teacher's channels are: scores along the axes of its tensors, never one for each weight."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from diffusers import ModelMixin
from torch import Tensor
from torch.nn import functional

from diffcompress.errors import GradientError
from diffcompress.memory import Need
from diffcompress.runtime import free_memory

Batch = tuple[Tensor, Tensor, Mapping[str, Tensor], Tensor]
Predict = Callable[[Tensor, Tensor, Mapping[str, Tensor]], Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class AxisScores:
    """Importance of a tensor's slices: along[axis] `[size of that axis]` float32, summed over all other axes.

    Picking channels asks for no more, and a matrix of a million weights has two thousand of them.
    """

    along: tuple[Tensor, ...]

    @classmethod
    def of(cls, elements: Tensor) -> AxisScores:
        """The scores of a tensor from the importance of each of its elements, in float32."""
        if elements.dim() < 2:
            return cls((elements,) * elements.dim())
        axes = range(elements.dim())
        return cls(tuple(elements.sum([other for other in axes if other != axis]) for axis in axes))

    def __add__(self, other: AxisScores) -> AxisScores:
        return AxisScores(tuple(one + two for one, two in zip(self.along, other.along, strict=True)))


class _Squares(Mapping[str, AxisScores]):
    """Squares of stored weights, each read when it is asked for: a teacher on disk is never in memory as a whole."""

    def __init__(self, teacher: Mapping[str, Tensor]) -> None:
        self._teacher = teacher

    def __getitem__(self, name: str) -> AxisScores:
        return AxisScores.of(self._teacher[name].detach().float().square())

    def __iter__(self) -> Iterator[str]:
        return iter(self._teacher)

    def __len__(self) -> int:
        return len(self._teacher)


def magnitude_scores(teacher: Mapping[str, Tensor]) -> Mapping[str, AxisScores]:
    """Squared weights: summed over a channel's slices they are its squared L2 norm. Computed when asked for."""
    return _Squares(teacher)


def taylor_scores(
    teacher: ModelMixin,
    predict: Predict,
    batches: Iterable[Batch],
    loss: Loss = functional.mse_loss,
    total: Callable[[Tensor], Tensor] = lambda own: own,
) -> dict[str, AxisScores]:
    """First-order Taylor importance |weight * gradient|, summed over `batches`, along the axes of each teacher tensor.

    predict: calls `teacher`, in its own dtype, and returns the prediction in float32 (`LoadedPipeline.predict`); a
    batch is (noisy, timestep, conditioning, target); total: sums over all processes, each with batches of its own.
    The gradient is taken batch by batch: near an optimum its mean over the data is close to zero for every weight.
    Beside the teacher, memory holds one weight's gradient at a time and the activations of one batch, recomputed
    where the class can. A buffer scores zero, and so does the second name of a shared weight. The teacher is left
    as it was. Raises GradientError when a gradient is not finite.
    """
    scores = {
        name: AxisScores(tuple(torch.zeros(size, device=value.device) for size in value.shape))
        for name, value in teacher.state_dict().items()
    }
    scale = 1.0

    def reduce(name: str, weight: Tensor) -> None:
        assert weight.grad is not None
        scores[name] += AxisScores.of((weight.detach().float() * weight.grad).abs_().div_(scale))
        weight.grad = None

    with _differentiated(teacher, reduce):
        for noisy, timestep, conditioning, target in batches:
            # A mean over many elements has gradients that float16 would round to zero; a power of two changes no other.
            scale = 2.0 ** round(math.log2(target.numel()) / 2)
            with torch.enable_grad():
                (scale * loss(predict(noisy, timestep, conditioning), target)).backward()  # type: ignore[no-untyped-call]
    scores = _summed(scores, total)
    for name, score in scores.items():
        if not all(torch.isfinite(along).all() for along in score.along):
            raise GradientError(
                f"the teacher's weights cannot be ranked by their gradients: that of {name} is not finite",
                "rank them by magnitude: --set student.importance=magnitude",
            )
    return scores


def _summed(scores: dict[str, AxisScores], total: Callable[[Tensor], Tensor]) -> dict[str, AxisScores]:
    """`scores` of all processes together, in one exchange."""
    own = [along for score in scores.values() for along in score.along]
    summed = iter(total(torch.cat(own)).split([len(along) for along in own]))
    return {name: AxisScores(tuple(next(summed) for _ in score.along)) for name, score in scores.items()}


def rows_held(teacher: ModelMixin, predict: Predict, batch: Batch, loss: Loss = functional.mse_loss) -> int:
    """Rows of a batch whose gradients the free memory holds, as `taylor_scores` takes them; from those of `batch`."""
    noisy, timestep, conditioning, target = batch

    def take(_name: str, weight: Tensor) -> None:
        weight.grad = None

    def step(rows: int) -> None:
        given = {name: value[:rows] for name, value in conditioning.items()}
        with torch.enable_grad():
            loss(predict(noisy[:rows], timestep[:rows], given), target[:rows]).backward()  # type: ignore[no-untyped-call]

    with _differentiated(teacher, take):
        return Need.of(step, noisy.device).rows_in(free_memory(noisy.device))


@contextlib.contextmanager
def _differentiated(teacher: ModelMixin, reduce: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Every weight has a gradient, given to `reduce(name, weight)` as soon as it is whole; all is undone at the end."""
    weights = dict(teacher.named_parameters())
    before = {name: (weight.requires_grad, weight.grad) for name, weight in weights.items()}
    recomputed = teacher.is_gradient_checkpointing
    handles = []
    try:
        for name, weight in weights.items():
            weight.requires_grad_(True)
            weight.grad = None
            handles.append(weight.register_post_accumulate_grad_hook(functools.partial(reduce, name)))
        if not recomputed:
            with contextlib.suppress(ValueError):  # the class cannot
                teacher.enable_gradient_checkpointing()
        yield
    finally:
        if not recomputed:
            with contextlib.suppress(ValueError):
                teacher.disable_gradient_checkpointing()
        for handle in handles:
            handle.remove()
        for name, (flag, gradient) in before.items():
            weights[name].requires_grad_(flag)
            weights[name].grad = gradient
