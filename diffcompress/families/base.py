"""The questions that every backbone family answers; nothing else in the project asks which class a denoiser is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Knob:
    """One integer axis of a student.

    values: what it may be, ascending; teacher: the teacher's value; kind: "width" (parameters grow with its square),
    "depth" (repeats) or "fine" (moves the size a little); narrow: a width below which depth should shrink first.
    """

    name: str
    values: range
    teacher: int
    kind: Literal["width", "depth", "fine"]
    narrow: int = 0


@dataclass(frozen=True)
class Variant:
    """One setting of what hardly changes the size (norm groups, head size) and the knob values that it allows.

    cost: how unwelcome it is, in the unit of the search: 0.1 is as bad as one width 10 % off the common scale.
    """

    fixed: Mapping[str, int]
    knobs: tuple[Knob, ...]
    cost: float


@dataclass(frozen=True)
class TensorRule:
    """Where one student tensor comes from: its teacher tensor and, per axis, the index sets it is cut by.

    Each axis is a tuple of set names whose picks are laid end to end (a skip concatenation has two); an empty tuple
    copies the axis whole. teacher None: the teacher has no such tensor because it passes its input through; the
    student's is the identity, cut the same way (zeros for a bias). scale multiplies the values.
    """

    student: str
    teacher: str | None
    axes: tuple[tuple[str, ...], ...]
    shape: tuple[int, ...]
    scale: float = 1.0


@dataclass(frozen=True)
class IndexSet:
    """A set of teacher channels to pick: `size` of `teacher_size`, in `groups` student norm groups (or heads).

    teacher_groups: norm groups (or heads) of the teacher's axis; 1: none. mixture `[teacher_size, size]`: the family's
    own linear map in place of picks, for axes that mean something by position (a sinusoid's frequencies).
    """

    name: str
    teacher_size: int
    size: int
    teacher_groups: int = 1
    groups: int = 1
    mixture: np.ndarray | None = field(default=None, compare=False)


@dataclass(frozen=True)
class TensorRules:
    """Every tensor of a student exactly once, in no particular order, and the sets that they name.

    notes: what these rules cannot carry over, in plain sentences.
    """

    sets: Mapping[str, IndexSet]
    rules: tuple[TensorRule, ...]
    notes: tuple[str, ...] = ()

    @property
    def num_parameters(self) -> int:
        return sum(math.prod(rule.shape) for rule in self.rules)


class Family(Protocol):
    """Data and small functions about one diffusers denoiser class."""

    class_name: str
    subfolder: str

    def variants(self, config: Config, *, channels_per_group: int) -> tuple[Variant, ...]:
        """All ways to shrink `config`: the same knobs each, with their own values; the last variant is the freest.

        channels_per_group: fewest channels in a student's GroupNorm group. Raises UsageError for what cannot shrink.
        """
        ...

    def shrunk_config(self, config: Config, choice: Mapping[str, int]) -> dict[str, Any]:
        """The teacher's config with `choice` (a variant's fixed values and all knobs), in diffusers' own keys."""
        ...

    def blocks(self, model: nn.Module) -> tuple[str, ...]:
        """Names of the modules whose outputs `[B, C, *spatial]` are features, in order.

        As many in a student as in its teacher, at the same resolutions.
        """
        ...

    def tensor_rules(self, teacher: Config, student: Config) -> TensorRules:
        """One rule for each tensor of the student."""
        ...

    def predict(self, model: nn.Module, noisy: Tensor, timestep: Tensor, conditioning: Mapping[str, Tensor]) -> Tensor:
        """The prediction in latent shape `[B, C, *spatial]`."""
        ...

    def sample_shape(self, config: Config) -> tuple[int, ...]:
        """Shape of one clean sample, without the batch axis."""
        ...

    def num_classes(self, config: Config) -> int | None:
        """Number of class labels, None when unconditional."""
        ...

    def tiny_config(self) -> dict[str, Any]:
        """A config that builds a real model of this class in milliseconds, for tests."""
        ...

    def example_inputs(self, config: Config, batch: int = 1) -> dict[str, Tensor]:
        """noisy, timestep and conditioning tensors of the teacher's own interface (on the current default device)."""
        ...
