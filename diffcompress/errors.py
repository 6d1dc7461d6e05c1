"""What can go wrong, and the exit code each kind of failure ends with. The codes are an API (docs/cli.md)."""

import re
from enum import IntEnum

_LONGEST_WORD = 300
_ENDLESS = re.compile(rf"\S{{{_LONGEST_WORD + 1},}}")
_LONGEST = 4000
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class ExitStatus(IntEnum):
    """Exit codes of the command line."""

    OK = 0
    RUN_FAILED = 1
    USAGE = 2
    GATE_FAILED = 3
    NO_ACCESS = 4
    DOES_NOT_FIT = 5
    STOPPED = 75
    INTERRUPTED = 130


class DiffCompressError(Exception):
    """A failure told to the user: `message` says what happened, with the value, and why; `hint` what to do next."""

    exit_status = ExitStatus.RUN_FAILED

    def __init__(self, message: str, hint: str = "") -> None:
        # Values of the user's are quoted in it: some are endless, or would move the cursor.
        message = _CONTROLS.sub(lambda letter: letter[0].encode("unicode_escape").decode(), message)
        message = _ENDLESS.sub(lambda word: f"{word[0][:_LONGEST_WORD]}...", message)
        message = message if len(message) <= _LONGEST else f"{message[:_LONGEST]}..."
        super().__init__(message)
        self.message = message
        self.hint = hint


class DamagedError(DiffCompressError):
    """A file of ours that cannot be read any more; `step` says how what it held is made again: "is drawn"."""

    def __init__(self, message: str, hint: str = "", step: str = "is made") -> None:
        super().__init__(message, hint)
        self.step = step


class UsageError(DiffCompressError):
    """Bad input: an option, a file, a teacher or a folder that cannot be used as it is."""

    exit_status = ExitStatus.USAGE


class AccessError(DiffCompressError):
    """Something that exists but may not be read: gated, private, offline, licence unknown."""

    exit_status = ExitStatus.NO_ACCESS


class DoesNotFitError(DiffCompressError):
    """A size that cannot be built, or that memory cannot hold."""

    exit_status = ExitStatus.DOES_NOT_FIT


class RunStopped(DiffCompressError):
    """The run ended early but the same command goes on: SIGTERM, a full disk."""

    exit_status = ExitStatus.STOPPED


class RunInterrupted(RunStopped):
    """Ctrl-C: checkpointed, resumable."""

    exit_status = ExitStatus.INTERRUPTED
