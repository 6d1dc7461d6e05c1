"""What a person or a script sees: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TextIO

from diffcompress.errors import printable
from diffcompress.records.units import duration
from diffcompress.runtime import Progress

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

PLAIN_EVERY_SECONDS = 30.0


@dataclass
class _Task:
    """When and where a task was first and last heard of, for its speed and for the pause between plain lines."""

    started: float
    first: int
    printed: float = -math.inf
    finished: bool = False

    def rate(self, done: int, now: float) -> float | None:
        """Units per second since the first report, None while nothing was done."""
        return (done - self.first) / (now - self.started) if done > self.first and now > self.started else None


@dataclass
class Output(Progress):
    """Progress and results of one command.

    as_json: the result as JSON; quiet: no notes and no progress, warnings stay. Of several processes only the main
    one speaks.
    """

    as_json: bool = False
    quiet: bool = False
    stdout: TextIO = field(default_factory=lambda: sys.stdout)
    stderr: TextIO = field(default_factory=lambda: sys.stderr)
    _tasks: dict[str, _Task] = field(default_factory=dict)
    _bars: Bars | None = None
    _bar_ids: dict[str, TaskID] = field(default_factory=dict)

    @property
    def is_main(self) -> bool:
        return os.environ.get("RANK", "0") == "0"

    def note(self, text: str) -> None:
        if not self.quiet:
            self._line(text)

    def warn(self, text: str) -> None:
        self._line(text, "warning: ", "yellow")

    def error(self, message: str, hint: str = "") -> None:
        self._line(message, "error: ", "red")
        if hint:
            self._line(hint, "hint: ", "cyan")

    def update(self, task: str, done: int, total: int, **values: float) -> None:
        if self.quiet or not self.is_main:
            return
        now = time.monotonic()
        state = self._tasks.get(task)
        # The same task may come round again: evaluations, previews.
        if state is None or (state.finished and done < total):
            state = self._tasks[task] = _Task(now, done)
        if state.finished:
            return
        state.finished = done >= total
        rate = state.rate(done, now)
        if self.stderr.isatty():
            self._show(task, done, total, _told(values, rate, done, total))
        elif state.finished or now - state.printed >= PLAIN_EVERY_SECONDS:
            state.printed = now
            told = ", ".join([f"{done}/{total}", *_told(values, rate, done, total)])
            self._line(f"{task.replace('_', ' ')} {told}")

    def result(self, value: Any, *human: Any) -> None:
        """The result on stdout: `value` as JSON, or the renderables and texts of `human`."""
        self.close()
        if not self.is_main:
            return
        if self.as_json:
            told = json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False)
            shown = told if self._shown(told) == told else json.dumps(json.loads(told), indent=2)
            print(shown, file=self.stdout)
        else:
            self._print(human)
        self.stdout.flush()

    def _print(self, items: tuple[Any, ...]) -> None:
        from rich.console import Console

        # Off a terminal nothing may be cut or folded to a width that nobody has.
        terminal = self.stdout.isatty()
        console = Console(
            file=self.stdout, width=None if terminal else 10_000, highlight=False, markup=False, emoji=False
        )
        with console.capture() as captured:
            for item in items:
                console.print(item, soft_wrap=isinstance(item, str))
        lines = captured.get().splitlines()
        print(self._shown("\n".join(lines if terminal else map(str.rstrip, lines))), file=self.stdout)

    def _shown(self, text: str) -> str:
        """`text` with escapes for what stdout's encoding does not have."""
        encoding = self.stdout.encoding or "utf-8"
        return text.encode(encoding, "backslashreplace").decode(encoding)

    def close(self) -> None:
        """Leave the live display, if there is one."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None
            self._bar_ids.clear()

    def _show(self, task: str, done: int, total: int, told: list[str]) -> None:
        bars = self._live()
        if task not in self._bar_ids:
            self._bar_ids[task] = bars.add_task(task.replace("_", " "), total=total, told="")
        bars.update(self._bar_ids[task], completed=done, total=total, told="  ".join(told))

    def _live(self) -> Bars:
        if self._bars is None:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
            from rich.progress import Progress as Bars

            columns = (
                TextColumn("{task.description}"),
                BarColumn(24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[told]}"),
            )
            console = Console(file=self.stderr, highlight=False)
            self._bars = Bars(
                *columns, console=console, redirect_stdout=False, redirect_stderr=False, refresh_per_second=4
            )
            self._bars.start()
        return self._bars

    def _line(self, text: str, label: str = "", colour: str = "") -> None:
        if not self.is_main:
            return
        text = printable(text)
        if not self.stderr.isatty():
            print(label + text, file=self.stderr, flush=True)
            return
        from rich.console import Console
        from rich.text import Text

        console = self._bars.console if self._bars is not None else Console(file=self.stderr, highlight=False)
        console.print(Text.assemble((label, f"bold {colour}".strip()), text), soft_wrap=True)


def _told(values: dict[str, float], rate: float | None, done: int, total: int) -> list[str]:
    told = [f"{name.replace('_', ' ')} {value:.4g}" for name, value in values.items()]
    if rate is not None:
        told.append(f"{rate:.3g}/s" if "loss" not in values else f"{rate:.3g} steps/s")
        if done < total:
            told.append(f"{duration((total - done) / rate)} left")
    return told


def _plain(value: Any) -> Any:
    """`value` with what JSON cannot say, NaN and infinity, as null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)
