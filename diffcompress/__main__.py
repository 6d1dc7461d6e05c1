"""`python -m diffcompress`, the console script, and what torchrun starts: signals first, imports after."""

import gc
import os
import signal
from types import FrameType

_STATUS = {signal.SIGTERM: 75, signal.SIGINT: 130}  # as in errors.ExitStatus, which takes longer to import


def _leave(number: int, _frame: FrameType | None) -> None:
    """A stop before anything has begun: there is nothing to save."""
    os.write(2, f"error: stopped by {signal.Signals(number).name}\nhint: run the same command again\n".encode())
    os._exit(_STATUS[signal.Signals(number)])


def prepare() -> None:
    """What must be set before torch is imported."""
    # Imports leave half a million objects that all stay; looking for garbage among them took a quarter of the time.
    gc.set_threshold(100_000, *gc.get_threshold()[1:])
    # Threads that spin for long while they wait hold each other up as soon as anything else runs (docs/benchmarks.md).
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def main() -> None:
    """The command line in this process."""
    for number in _STATUS:
        signal.signal(number, _leave)
    prepare()
    from diffcompress.cli.app import main as run

    run()


if __name__ == "__main__":
    main()
