"""`python -m diffcompress`, the console script, and what torchrun starts: signals first, imports after."""

import os
import signal
from types import FrameType

_STATUS = {signal.SIGTERM: 75, signal.SIGINT: 130}  # as in errors.ExitStatus, which takes longer to import


def _leave(number: int, _frame: FrameType | None) -> None:
    """A stop before anything has begun: there is nothing to save."""
    os.write(2, f"error: stopped by {signal.Signals(number).name}\nhint: run the same command again\n".encode())
    os._exit(_STATUS[signal.Signals(number)])


def main() -> None:
    """The command line in this process."""
    for number in _STATUS:
        signal.signal(number, _leave)
    from diffcompress.cli.app import main as run

    run()


if __name__ == "__main__":
    main()
