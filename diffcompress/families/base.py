"""The questions that every backbone family answers; nothing else in the project asks which class a denoiser is."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Knob:
    """One integer axis of a student.

    values: what it may be, ascending; teacher: the teacher's value; kind: "width" (parameters grow with its square),
    "depth" (repeats), "inner" (repeats inside a layer, which shrink together and before depth does) or "fine" (moves
    the size a little); narrow: a width below which depth should shrink first; modules: the beginnings of the names of
    the tensors that a width belongs to; levels: the resolutions it is the width of, 0 the finest, each half the last.
    """

    name: str
    values: range
    teacher: int
    kind: Literal["width", "depth", "inner", "fine"]
    narrow: int = 0
    modules: tuple[str, ...] = ()
    levels: tuple[int, ...] = ()


@dataclass(frozen=True)
class Stack:
    """Blocks of one kind: the config key of their number, the module list that holds them, and the least number.

    step: numbers are multiples of it; marked: the config key of the places of blocks that differ from the others.
    """

    key: str
    module: str
    step: int = 1
    marked: str | None = None


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
    student's is the identity, cut the same way (zeros for a bias). scale multiplies the values. scored: whether the
    tensor has a say in which channels are important (a buffer has none).
    """

    student: str
    teacher: str | None
    axes: tuple[tuple[str, ...], ...]
    shape: tuple[int, ...]
    scale: float = 1.0
    scored: bool = True


@dataclass(frozen=True)
class IndexSet:
    """A set of teacher channels to pick: `size` of `teacher_size`, in `groups` student norm groups (or heads).

    teacher_groups: norm groups (or heads) of the teacher's axis; 1: none. mixture `[teacher_size, size]`: the family's
    own linear map in place of picks, for axes that mean something by position (a sinusoid's frequencies).
    positions: what is kept inside every kept group, ascending, where channels mean something by position (the
    frequencies of a rotary or sinusoidal embedding); None: the best by score. follows: another set whose groups this
    one keeps (the key heads of grouped query heads).
    """

    name: str
    teacher_size: int
    size: int
    teacher_groups: int = 1
    groups: int = 1
    mixture: np.ndarray | None = field(default=None, compare=False)
    positions: tuple[int, ...] | None = None
    follows: str | None = None


@dataclass(frozen=True)
class TensorRules:
    """Every tensor of a student exactly once, in no particular order, and the sets that they name.

    notes: what these rules cannot carry over, in plain sentences.
    """

    sets: Mapping[str, IndexSet]
    rules: tuple[TensorRule, ...]
    notes: tuple[str, ...] = ()

    @property
    def num_elements(self) -> int:
        """Elements of all tensors together, buffers too."""
        return sum(math.prod(rule.shape) for rule in self.rules)


@runtime_checkable
class Family(Protocol):
    """Data and small functions about one diffusers denoiser class. Configs are complete ones (see `complete`).

    kind: how its students are searched: a U-Net has a width for each of its levels, a transformer one for all blocks;
    stacks: those of a transformer.
    recipe: the built-in recipe it starts from. call_options: what its pipelines must be called with, beyond a prompt,
    to use the guidance that they are meant to be used with. pipelines: the usual ones of diffusers. former: the
    norm_type by which configs named the class that were written before it had a name of its own. optional_encoders:
    text encoders that its usual pipelines encode prompts without.
    """

    @property
    def class_name(self) -> str: ...

    @property
    def subfolder(self) -> str: ...

    @property
    def kind(self) -> Literal["unet", "transformer"]: ...

    @property
    def stacks(self) -> tuple[Stack, ...]: ...

    @property
    def recipe(self) -> str: ...

    @property
    def call_options(self) -> Mapping[str, Any]: ...

    @property
    def pipelines(self) -> tuple[str, ...]: ...

    @property
    def former(self) -> str | None: ...

    @property
    def optional_encoders(self) -> tuple[str, ...]: ...

    def bare_pipeline(self, scheduler: str) -> str | None:
        """The pipeline of a denoiser and a scheduler of this class alone, None where there is no such pipeline."""
        ...

    def variants(self, config: Config, *, channels_per_group: int) -> tuple[Variant, ...]:
        """All ways to shrink `config`: the same knobs each, with their own values; the last variant is the freest.

        The first variant of a transformer keeps the teacher's head size. channels_per_group: fewest channels in a
        student's GroupNorm group. Raises UsageError for what cannot shrink.
        """
        ...

    def shrunk_config(self, config: Config, choice: Mapping[str, int]) -> dict[str, Any]:
        """The teacher's config with `choice` (a variant's fixed values and all knobs), in diffusers' own keys."""
        ...

    def reasons(self, config: Config, student: Config) -> Mapping[str, str]:
        """Why a student of `config` has other values, by config key: half a sentence each, for its plan."""
        ...

    def blocks(self, model: nn.Module) -> tuple[str, ...]:
        """Names of the modules whose outputs are features, in order: as many in a student as in its teacher."""
        ...

    def feature(self, output: Any) -> Tensor:
        """The image features `[B, C, *positions]` in what one of `blocks` returned."""
        ...

    def tensor_rules(self, teacher: Config, student: Config) -> TensorRules:
        """One rule for each tensor of the student."""
        ...

    def predict(self, model: nn.Module, noisy: Tensor, timestep: Tensor, conditioning: Mapping[str, Tensor]) -> Tensor:
        """The prediction in latent shape `[B, C, *spatial]`, or `[B, 2C, *spatial]` with the learned variance behind.

        In the scheduler's own convention: whatever the class packs, scales, negates or counts backwards is undone.
        timestep `[B]`: the scheduler's, integers or (flow matching) floats in (0, num_train_timesteps].
        """
        ...

    def sample_shape(self, config: Config) -> tuple[int, ...]:
        """Shape of one clean sample, without the batch axis: what its pipeline makes unless told otherwise."""
        ...

    def num_tokens(self, config: Config, shape: tuple[int, ...]) -> int:
        """Positions that the denoiser sees of a sample of `shape`; shifts the noise schedule of some flow models."""
        ...

    def num_classes(self, config: Config) -> int | None:
        """Number of class labels, None when not class-conditional."""
        ...

    def null_class(self, config: Config) -> int | None:
        """The label that stands for no label, None where there is none."""
        ...

    def text_conditioning(self, config: Config) -> tuple[str, ...]:
        """Keyword tensors of the denoiser that come from a prompt, nested ones with a dot; empty without text."""
        ...

    def tiny_config(self) -> dict[str, Any]:
        """A complete config that builds a real model of this class in milliseconds, for tests."""
        ...

    def example_inputs(self, config: Config, batch: int = 1) -> dict[str, Tensor]:
        """noisy, timestep and conditioning tensors of the teacher's own interface (on the current default device)."""
        ...


def complete(class_name: str, config: Config) -> dict[str, Any]:
    """`config` with what it leaves to its class: the defaults of the signature that diffusers has for it today.

    Every question of a Family is about a complete config. Imports the class.
    """
    return {**config, **{key: value for key, value in _defaults(class_name).items() if key not in config}}


@functools.cache
def _defaults(class_name: str) -> dict[str, Any]:
    import diffusers

    parameters = inspect.signature(getattr(diffusers, class_name).__init__).parameters.values()
    stated = {p.name: p.default for p in parameters if p.default is not p.empty}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in stated.items()}


def plain_config(class_name: str, config: Config, **changes: Any) -> dict[str, Any]:
    """`config` with `changes`, without diffusers' private keys and how its weights were quantized."""
    kept = {k: v for k, v in config.items() if not k.startswith("_") and k != "quantization_config"}
    return {"_class_name": class_name, **kept, **changes}
