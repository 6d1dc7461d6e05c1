"""What the losses of a training step are computed from, and where each is found: by the name of its weight."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .reduction import Prediction, Scalar
from .terms import LossTerms, ReduceMean

# Of LIFT and PLACE alike.
_OF_LINES = ("norm", "reduction", "fine", "gate", "coarse_weight", "power")


@dataclass(frozen=True)
class Step:
    """One batch, seen by student and teacher.

    prediction, target: the student's and the teacher's `[B, C, *spatial]`, without a learned variance.
    variance: that, student's and teacher's, None where there is none.
    diffusion_target: what a perfect denoiser would have been trained on; None where no loss of the stage asks for it.
    features: of the student's blocks, as wide as the teacher's; teacher_features: asks the teacher for its own.
    knobs: the stage of the recipe, by name. reduce_mean: see `lift`.
    """

    prediction: Prediction
    target: Prediction
    variance: tuple[Prediction, Prediction] | None
    diffusion_target: Prediction | None
    features: Sequence[Tensor]
    teacher_features: Callable[[], Sequence[Tensor]]
    knobs: Mapping[str, Any]
    reduce_mean: ReduceMean

    @property
    def by_lines(self) -> dict[str, Any]:
        """What LIFT and PLACE are told."""
        return {name: self.knobs[name] for name in _OF_LINES} | {"reduce_mean": self.reduce_mean}


Term = Callable[[Step], LossTerms | Scalar | None]


def term_of(name: str) -> Term:
    """The `term` of the loss `<name>.py`: None for a step that has nothing to compute it from."""
    term: Term = importlib.import_module(f"{__package__}.{name}").term
    return term
