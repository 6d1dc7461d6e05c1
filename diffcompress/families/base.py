"""The questions that every backbone family answers; nothing else in the project asks which class a denoiser is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Knob:
    """One integer axis of a student: its name, the values it may take (ascending), and the teacher's value.

    kind: "width" (parameters grow with its square), "depth" (repeats), or "fine" (moves the size a little).
    """

    name: str
    values: Sequence[int]
    teacher: int
    kind: str


@dataclass(frozen=True)
class TensorRule:
    """Where one student tensor comes from: its teacher tensor and, per axis, the index sets it is cut by.

    Each axis is a tuple of set names whose picks are laid end to end (a skip concatenation has two); an empty tuple
    copies the axis whole.
    """

    student: str
    teacher: str
    axes: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class IndexSet:
    """A set of teacher channels to pick: `size` of `teacher_size`, in `groups` student norm groups.

    teacher_groups: norm groups of the teacher's axis (1: no norm); fixed: picks given by the family instead of
    importance (sinusoid frequencies, attention heads that stay).
    """

    name: str
    teacher_size: int
    size: int
    teacher_groups: int = 1
    groups: int = 1
    fixed: tuple[int, ...] | None = None


@dataclass(frozen=True)
class TensorRules:
    sets: tuple[IndexSet, ...]
    rules: tuple[TensorRule, ...]


class Family(Protocol):
    """Data and small functions about one diffusers denoiser class."""

    class_name: str
    subfolder: str

    def knobs(self, config: Config, *, channels_per_group: int) -> tuple[Knob, ...]:
        """The integer axes along which a student of `config` may shrink."""
        ...

    def shrunk_config(self, config: Config, choice: Mapping[str, int], *, channels_per_group: int) -> dict[str, Any]:
        """The teacher's config with the values of `choice`, in diffusers' own keys."""
        ...

    def blocks(self, model: nn.Module) -> tuple[str, ...]:
        """Names of the modules whose outputs are features, in order."""
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
