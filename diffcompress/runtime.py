"""The one Accelerator, device, threads and signals of a process."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from types import FrameType
from typing import TYPE_CHECKING, Any

from diffcompress import heartbeat
from diffcompress.containers import memory_left
from diffcompress.errors import RunInterrupted, RunStopped, UsageError

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from torch import Tensor

LONGEST_WAIT = timedelta(days=7)


class Progress:
    """Where a job tells a person what it does; this one keeps silent. The command line brings its own."""

    def note(self, text: str) -> None:
        """Something worth knowing, once."""

    def warn(self, text: str) -> None:
        """Something the user should look at."""

    def update(self, task: str, done: int, total: int, **values: float) -> None:
        """`done` of `total` units of `task`; values such as loss, slope, fine_weight of the moment."""


@dataclass
class StopRequest:
    """Set by SIGTERM or the first Ctrl-C; the loop looks at it between steps. A second Ctrl-C leaves at once."""

    signal: int | None = None
    _previous: dict[int, object] = field(default_factory=dict)

    def install(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._handle)

    def restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            os._exit(130)
        self.signal = number

    def raise_if_set(self) -> None:
        """Raise RunInterrupted or RunStopped when a stop was asked for. Call it where everything is saved."""
        if self.signal == signal.SIGINT:
            raise RunInterrupted("interrupted", "run the same command again to go on")
        if self.signal is not None:
            raise RunStopped("stopped by SIGTERM", "run the same command again to go on")


@dataclass
class Runtime:
    """Where this process computes, which share of the work is its own, and whether it should stop."""

    accelerator: Accelerator
    stop: StopRequest

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    @property
    def is_main(self) -> bool:
        return self.accelerator.is_main_process

    @property
    def index(self) -> int:
        return self.accelerator.process_index

    @property
    def count(self) -> int:
        return self.accelerator.num_processes

    def share(self, total: int) -> slice:
        """This process's contiguous share of `total` items."""
        return slice(total * self.index // self.count, total * (self.index + 1) // self.count)

    def mean(self, value: Tensor) -> Tensor:
        """Mean of `value` over all processes."""
        return self.accelerator.reduce(value, "mean") if self.count > 1 else value

    def total(self, value: Tensor) -> Tensor:
        """Sum of `value` over all processes."""
        return self.accelerator.reduce(value, "sum") if self.count > 1 else value

    def wait(self) -> None:
        self.accelerator.wait_for_everyone()

    def should_stop(self) -> bool:
        """True on every process as soon as one was asked to stop."""
        number = self._most(int(self.stop.signal or 0))
        if number and self.stop.signal is None:
            self.stop.signal = number
        return bool(number)

    def stop_together(self) -> None:
        """Raise RunInterrupted or RunStopped on every process when one was asked to stop. Call it where everything is
        saved."""
        if self.should_stop():
            self.wait()
            self.stop.raise_if_set()

    def anywhere(self, flag: bool) -> bool:
        """True on every process where `flag` is on one of them."""
        return bool(self._most(int(flag)))

    def least(self, number: int) -> int:
        """The smallest `number` of all processes."""
        return -self._most(-number)

    def _most(self, number: int) -> int:
        """The largest `number` of all processes."""
        if self.count == 1:
            return number
        import torch

        found = torch.tensor(number)  # on the CPU: no host waits for its device
        torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
        return int(found)


def default_device() -> str:
    """cuda, else mps, else cpu: what is there."""
    import torch

    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def start(device: str | None = None) -> Runtime:
    """The runtime of this process: cuda, else mps, else cpu, unless `device` says otherwise.

    Raises UsageError for a device that is not there.
    """
    import torch
    from accelerate import Accelerator, InitProcessGroupKwargs

    chosen = device or default_device()
    kind = chosen.split(":")[0]
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(kind, False):
        raise UsageError(
            f"device '{chosen}' is not available", f"choose one of {', '.join(k for k, v in available.items() if v)}"
        )
    if kind == "cuda" and ":" in chosen:
        torch.cuda.set_device(chosen)
    if kind == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True  # but where `exact_float32` says otherwise
    # The first process exports and evaluates while the others wait. Precision is the recipe's, not the launcher's.
    # Processes on GPUs exchange gradients by NCCL, and what hosts tell each other by Gloo.
    patient = InitProcessGroupKwargs(timeout=LONGEST_WAIT, backend="cuda:nccl,cpu:gloo" if kind == "cuda" else None)
    accelerator = Accelerator(cpu=kind == "cpu", mixed_precision="no", kwargs_handlers=[patient])
    heartbeat.start()
    return Runtime(accelerator, StopRequest())


def holds_bfloat16(device: torch.device) -> bool:
    """False on Apple's devices before macOS 14, which have no such dtype."""
    import torch

    return device.type != "mps" or torch.backends.mps.is_macos_or_newer(14, 0)


def computes_bfloat16(device: torch.device) -> bool:
    """True on a GPU that multiplies in bfloat16; others and CPUs emulate it, slower than float32."""
    import torch

    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


@contextlib.contextmanager
def exact_float32() -> Iterator[None]:
    """Products of float32 numbers in full precision, also on a GPU that rounds their factors to TF32 elsewhere."""
    import torch

    parts: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [part.allow_tf32 for part in parts]
    for part in parts:
        part.allow_tf32 = False
    try:
        yield
    finally:
        for part, allowed in zip(parts, before, strict=True):
            part.allow_tf32 = allowed


def dtype_name(dtype: torch.dtype) -> str:
    """As `--dtype` and safetensors configs spell it: "float16", without torch's name."""
    return str(dtype).removeprefix("torch.")


def synchronise(device: torch.device) -> None:
    """Wait until `device` has done what it was asked to."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    """Wall seconds of `call`, with all that it asks of `device`."""
    synchronise(device)
    started = time.perf_counter()
    call()
    synchronise(device)
    return time.perf_counter() - started


def free_memory(device: torch.device) -> int:
    """Bytes of `device` that nothing holds, those that torch keeps for reuse among them; of a CPU's memory no more than
    a container leaves."""
    import psutil
    import torch

    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    return int(min(psutil.virtual_memory().available, memory_left()))


def environment(runtime: Runtime | None = None) -> dict[str, object]:
    """Versions, device and threads: paste-ready for a bug report, and recorded with every run."""
    import platform
    from importlib.metadata import version

    import torch

    names = ("diffcompress", "torch", "diffusers", "accelerate", "safetensors", "huggingface-hub", "numpy")
    facts: dict[str, object] = {"python": platform.python_version(), "platform": platform.platform()}
    facts |= {name: version(name) for name in names}
    facts |= {
        "device": str(runtime.device) if runtime else default_device(),
        "processes": runtime.count if runtime else 1,
        "threads": torch.get_num_threads(),
        "cpu_count": os.cpu_count(),
    }
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    return facts
