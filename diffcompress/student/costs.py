"""What a denoiser of some config costs, counted on the meta device: nothing is allocated and no weights are read."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from diffcompress.errors import UsageError
from diffcompress.families import registry
from diffcompress.families.base import Family, Stack
from diffcompress.memory import FusedAttention, LiveBytes, Need, gradients
from diffcompress.sources.state import SAFETENSORS_DTYPES
from diffcompress.student.size import build, num_parameters

# Blocks of a stack that are counted.
FEW = 2
# Numbers that are told of a denoiser on the meta device, and of the config that built it.
Ask = Callable[[nn.Module, Mapping[str, Any]], tuple[int, ...]]
CODES = {name: code for code, name in SAFETENSORS_DTYPES.items()}


@dataclass(frozen=True)
class Costs:
    """params: no buffers; shapes: of all tensors in a weight file. Of one call at batch 1 macs: multiply-accumulates,
    call: bytes that it takes at once in float32 beside the weights, predicted: shape `[1, C, *spatial]`."""

    params: int
    macs: int
    call: int
    predicted: tuple[int, ...]
    shapes: Mapping[str, tuple[int, ...]]

    def file_bytes(self, dtype: str) -> int:
        """Exact size of the safetensors file with all tensors in `dtype`."""
        itemsize = getattr(torch, dtype).itemsize
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
        # safetensors lays tensors of one dtype out by name.
        for name, shape in sorted(self.shapes.items()):
            end = offset + itemsize * torch.Size(shape).numel()
            header[name] = {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
            offset = end
        length = len(json.dumps(header, separators=(",", ":")))
        return 8 + -(-length // 8) * 8 + offset


def count(family: Family, config: Mapping[str, Any]) -> Costs:
    """Costs of the denoiser that `config` builds; RuntimeError or ValueError where it does not run."""
    plain = {key: value for key, value in config.items() if not key.startswith("_")}
    return _counted(family.class_name, json.dumps(plain, sort_keys=True))


@lru_cache(maxsize=16)
def _counted(class_name: str, text: str) -> Costs:
    family, config = registry.find(class_name), json.loads(text)
    predicted: list[tuple[int, ...]] = []

    def ask(denoiser: nn.Module, config: Mapping[str, Any]) -> tuple[int, int]:
        counter, attention, live = FlopCounterMode(display=False), FusedAttention(), LiveBytes("meta")
        with torch.no_grad(), counter, attention, live:
            predicted.append(tuple(_predicted(family, config, denoiser.eval(), 1).shape))
        return counter.get_total_flops() // 2 + attention.macs, live.peak

    whole = build(family, config, "meta")
    macs, call = _of_few_blocks(family, config, whole, ask)
    shapes = {name: tuple(value.shape) for name, value in whole.state_dict().items()}
    return Costs(num_parameters(whole), macs, call, predicted[0], shapes)


def _of_few_blocks(family: Family, config: Mapping[str, Any], whole: nn.Module, ask: Ask) -> tuple[int, ...]:
    """What `ask` says of `whole`, which `config` builds.

    On the meta device a call of a large denoiser takes seconds of Python, so stacks of blocks are asked for few of
    them: each more adds as much as one. Where their parameters say that blocks differ, `whole` itself is asked.
    """
    few, more = _fewer(family, config)
    if not more:
        return ask(whole, config)
    models = [(build(family, one, "meta"), one) for one in (few, *(few | change for _, change in more))]
    sizes = [num_parameters(model) for model, _ in models]
    if num_parameters(whole) != _grown(sizes, more):
        return ask(whole, config)
    return tuple(_grown(values, more) for values in zip(*(ask(*model) for model in models), strict=True))


def _fewer(family: Family, config: Mapping[str, Any]) -> tuple[dict[str, Any], list[tuple[int, dict[str, Any]]]]:
    """The config with few blocks of each kind; of each kind with more, how many more, and changes for one of them."""
    few: dict[str, Any] = dict(config)
    more: list[tuple[int, dict[str, Any]]] = []
    for stack in family.stacks:
        number, step, least = config[stack.key], stack.step, FEW * stack.step
        places = 0 if stack.marked is None else len(config.get(stack.marked) or ())

        def blocks(plain: int, marked: int, stack: Stack = stack) -> dict[str, Any]:
            known = {} if stack.marked is None else {stack.marked: list(range(marked))}
            return {stack.key: plain + marked} | known

        plain, marked = min(number - places, least), min(places, FEW)
        if (number - places - plain) // step + places - marked <= 1:
            continue
        few |= blocks(plain, marked)
        more.append(((number - places - plain) // step, blocks(plain + step, marked)))
        if places > marked:
            more.append((places - marked, blocks(plain, marked + 1)))
    return few, more


def _grown(values: Sequence[int], more: Sequence[tuple[int, object]]) -> int:
    """From a value of few blocks, and of one more of each stack."""
    least, *others = values
    return least + sum(beyond * (other - least) for other, (beyond, _) in zip(others, more, strict=True))


def check(family: Family, config: Mapping[str, Any], teacher: Mapping[str, Any]) -> Costs:
    """Those of a student, or of a teacher as its own, that runs on the inputs of `teacher` and predicts its samples.

    Raises RuntimeError or ValueError where it does not; UsageError when what it predicts is no prediction for each
    channel of the sample, nor one with a variance.
    """
    if _inputs(family, config) != _inputs(family, teacher):
        raise ValueError("it takes other inputs than the teacher")
    found = count(family, config)
    expected = (1, *family.sample_shape(teacher))
    if found.predicted[2:] != expected[2:]:
        raise ValueError(f"it predicts {found.predicted}, the teacher's samples are {expected}")
    given, made = expected[1], found.predicted[1]
    if made not in (given, 2 * given):
        raise UsageError(
            f"the teacher takes {given} channels and predicts {made}: it reads more than a noisy sample",
            "use a teacher that starts from noise alone",
        )
    return found


def _inputs(family: Family, config: Mapping[str, Any]) -> list[tuple[int, ...]]:
    """Shapes of all that a call is given."""
    with torch.device("meta"):
        return [tuple(value.shape) for value in tree_leaves(family.example_inputs(config)) if isinstance(value, Tensor)]


def call_memory(family: Family, config: Mapping[str, Any]) -> Need:
    """What one call takes in float32 beside the weights, by rows of its batch; of one row `Costs.call` tells."""
    denoiser = build(family, config, "meta").eval()
    with torch.no_grad():
        return Need.of(lambda rows: _predicted(family, config, denoiser, rows), torch.device("meta"))


def training_memory(family: Family, config: Mapping[str, Any], *, alone: bool = False, recompute: bool = False) -> Need:
    """What forward and backward pass take in float32 beside weights and their gradients, by rows of the batch; alone:
    see `Need.of`; recompute: with activations computed again, which raises ValueError where the class cannot."""

    def ask(denoiser: nn.Module, config: Mapping[str, Any]) -> tuple[int, int]:
        model: Any = denoiser.train()
        if recompute:
            model.enable_gradient_checkpointing(_checkpointed)
        with gradients(model):
            need = Need.of(
                lambda rows: _predicted(family, config, model, rows).sum().backward(),  # type: ignore[no-untyped-call]
                torch.device("meta"),
                alone=alone,
            )
        return need.fixed, need.row

    return Need(*_of_few_blocks(family, config, build(family, config, "meta"), ask))


def _checkpointed(module: nn.Module, *given: Any) -> Any:
    """The module's output, computed again in the backward pass, which does not know of modes around the forward one."""
    again = (contextlib.nullcontext(), FusedAttention())
    return checkpoint(module.__call__, *given, use_reentrant=False, context_fn=lambda: again)


def _predicted(family: Family, config: Mapping[str, Any], denoiser: nn.Module, rows: int) -> Tensor:
    with torch.device("meta"):
        inputs = family.example_inputs(config, rows)
    return family.predict(denoiser, inputs.pop("noisy"), inputs.pop("timestep"), inputs)
