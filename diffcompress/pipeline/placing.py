"""A denoiser that its device cannot hold: as many layers as fit lie on cards, the others stay in their weight files.

accelerate reads a layer when it is called and lets it go behind it. Nothing is copied or written: the files are those
of the teacher, and what of them stays in the host's memory is up to its system. Results are the same, bit for bit.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from accelerate.hooks import CpuOffload, add_hook_to_module, attach_align_device_hook_on_blocks
from accelerate.utils import infer_auto_device_map
from diffusers import ModelMixin
from torch import Tensor, nn

from diffcompress.memory import SHARE
from diffcompress.records import units
from diffcompress.runtime import free_memory
from diffcompress.sources.weights import TeacherState

# As accelerate calls it.
FILES = "disk"
# Weights that take less of what is free are loaded: leaving them in their files would gain little.
WORTH = 0.1
# Of other cards' free memory, for weights: batches as large as the first card holds pass through them, too.
OTHERS = 0.5
# Classes that use their parts' weights and never call these parts: all of them are read when such a one is called.
WHOLE = ["HunyuanDiTAttentionPool", "MultiheadAttention"]
Rooms = Mapping[int | str, int]


def device_of(model: nn.Module) -> torch.device:
    """Where `model` computes: where its weights lie, or are brought to."""
    hook = getattr(model, "_hf_hook", None)
    return next(model.parameters()).device if hook is None else torch.device(hook.execution_device)


def may_leave(weights: int, device: torch.device) -> bool:
    """Whether as many bytes can go from `device` to the host's memory and come back, of each process of this host."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return device.type == "cuda" and processes * weights <= SHARE * free_memory(torch.device("cpu"))


def leave(model: nn.Module, device: torch.device) -> None:
    """Move the weights of `model` to the host's memory. The next call brings them back to `device`, where they stay."""
    hook = getattr(model, "_hf_hook", None)
    if hook is None:
        add_hook_to_module(model, CpuOffload(device))
    else:
        hook.init_hook(model)


def rooms(
    hollow: ModelMixin, state: TeacherState, device: torch.device, free: int, beside: Callable[[], int]
) -> Rooms | None:
    """Bytes for weights on each card that there is, none on a device of another kind; None where `device` holds all of
    `hollow`, in the precision that it has.

    free: bytes there; beside: those of what else must lie there, asked for where it matters. Weights that a CPU
    computes with as they are stored take no memory of their own.
    """
    weights = held(hollow, state, device)
    if weights <= WORTH * free or weights + (taken := int(beside() / SHARE)) <= free:
        return None
    if device.type != "cuda":
        return {}
    own = torch.cuda.current_device() if device.index is None else device.index
    found: dict[int | str, int] = {own: max(0, free - taken)}
    alone = not (torch.distributed.is_available() and torch.distributed.is_initialized())
    if own == 0 and alone and hollow._no_split_modules:
        for other in range(1, torch.cuda.device_count()):
            found[other] = int(OTHERS * free_memory(torch.device("cuda", other)))
    return found


def held(hollow: nn.Module, state: TeacherState, device: torch.device) -> int:
    """Bytes of memory that the weights take: those of files are mapped on a CPU, unless they are cast."""
    copied = (value for name, value in hollow.state_dict().items() if not _is_mapped(state, name, value, device))
    return sum(value.nbytes for value in copied)


def _is_mapped(state: TeacherState, name: str, value: Tensor, device: torch.device) -> bool:
    return device.type == "cpu" and state.dtype_of(name) == value.dtype


def place(hollow: ModelMixin, state: TeacherState, device: torch.device, rooms: Rooms) -> str:
    """Give `hollow` the weights of `state`, in the precision that it has: to call it on `device`.

    rooms: bytes for them by card; without any all stay in their files. Returns what became of them, in the middle of
    a sentence.
    """
    where = _where(hollow, device, rooms)
    parameters = dict(hollow.named_parameters())
    there = {name: _lies(name, where) if name in parameters else device for name in state}
    loaded = {
        name: state[name].to(value.dtype).to(there[name])
        for name, value in hollow.state_dict().items()
        if there[name] != FILES
    }
    hollow.load_state_dict(loaded, strict=False, assign=True)
    hollow.eval().requires_grad_(False)
    modules = {name: spot for name, spot in where.items() if name not in parameters}
    attach_align_device_hook_on_blocks(
        hollow,
        execution_device={"": device} | {name: device if spot == FILES else spot for name, spot in modules.items()},
        offload={name: spot == FILES for name, spot in modules.items()},
        weights_map=Anew(state),
        preload_module_classes=WHOLE,
    )
    return _told([(parameters[name].nbytes, there[name]) for name in parameters])


def _where(hollow: ModelMixin, device: torch.device, rooms: Rooms) -> dict[str, Any]:
    """Device, or FILES, of modules, and of parameters whose module is not in one place."""
    if not rooms:
        return {"": FILES}
    found = infer_auto_device_map(hollow, dict(rooms), no_split_module_classes=hollow._no_split_modules or [])
    spots = {name: spot if spot == FILES else torch.device(spot) for name, spot in found.items()}
    # Hooks are a module's: what is no module of its own lies where all is called.
    return {
        name: device if spot == FILES and name in dict(hollow.named_parameters()) else spot
        for name, spot in spots.items()
    }


def _lies(name: str, where: Mapping[str, Any]) -> Any:
    while name not in where:
        name = name.rpartition(".")[0]
    return where[name]


def _told(weights: list[tuple[int, Any]]) -> str:
    left = sum(size for size, spot in weights if spot == FILES)
    spots = dict.fromkeys(str(spot) for _, spot in weights if spot != FILES)
    shares = [f"{units.size(sum(size for size, spot in weights if str(spot) == on))} on {on}" for on in spots]
    if not shares:
        return "its layers stay on disk and are read for each call"
    rest = f"the layers of the other {units.size(left)} stay on disk and are read for each call"
    return ", ".join([*shares, rest] if left else shares)


class Anew(Mapping[str, Tensor]):
    """Weights, each read from its file when it is asked for, whatever is read besides."""

    def __init__(self, state: TeacherState) -> None:
        self._state, self._names = state, dict.fromkeys(state)

    def __getitem__(self, name: str) -> Tensor:
        return self._state.anew(name)

    def __contains__(self, name: object) -> bool:  # which mappings find out by reading
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __deepcopy__(self, memo: object) -> Anew:
        return self  # a copy of a denoiser reads the same files
