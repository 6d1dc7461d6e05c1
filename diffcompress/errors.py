"""What can go wrong, and the exit code each kind of failure ends with. The codes are an API (docs/cli.md)."""

import errno
import re
from collections.abc import Iterator
from enum import IntEnum

_LONGEST_WORD = 300
_ENDLESS = re.compile(rf"\S{{{_LONGEST_WORD + 1},}}")
_LONGEST, _LONGEST_LINE = 4000, 900
# Line ends too, but for those before a line of ours that points into a quote.
_CONTROLS = re.compile("\\n(?!  )|[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


# As torch, the C library and the loader of shared libraries put it.
_OUT_OF_MEMORY = (
    "can't allocate memory",
    "could not create a primitive",  # oneDNN, which says no more
    "cannot allocate memory",
    "out of memory",
    "bad_alloc",  # C++ without a word of its own, such as onnxruntime's
    "failed to map segment",
    "memoryerror",
    "without exception set",  # CPython, of an extension that found no memory even for an exception
)
_FULL_DISK = ("no space left on device", "disk quota exceeded", "file too large")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # a disk, a quota, what one file may have


def tells_of_memory(text: str) -> bool:
    """Whether what a library or another process says means that memory was too small."""
    return any(words in text.lower() for words in _OUT_OF_MEMORY)


def tells_of_full_disk(text: str) -> bool:
    """Whether what a library or another process says means that a disk takes no more."""
    return any(words in text.lower() for words in _FULL_DISK)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was too small, also where a library says that something else failed because of it."""
    for one in _chain(error):
        # By name, so that a failure before torch was imported does not import it.
        if isinstance(one, MemoryError) or type(one).__name__ == "OutOfMemoryError":
            return True
        if isinstance(one, OSError) and one.errno == errno.ENOMEM:
            return True
        if isinstance(one, (RuntimeError, ImportError, OSError, SystemError)) and tells_of_memory(str(one)):
            return True
    return False


def is_full_disk(error: BaseException) -> bool:
    """Whether an error means that a disk takes no more; safetensors and torch have exceptions of their own for it."""
    return any((isinstance(e, OSError) and e.errno in FULL) or tells_of_full_disk(str(e)) for e in _chain(error))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what led to it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


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


def printable(text: str) -> str:
    """`text` with escapes for what would move the cursor or colour a terminal."""
    return _CONTROLS.sub(lambda letter: letter[0].encode("unicode_escape").decode(), text)


def told_shortly(message: str) -> str:
    """`message` on a line that a terminal can show: values of the user's are quoted in it, and some are endless."""
    message = _ENDLESS.sub(lambda word: f"{word[0][:_LONGEST_WORD]}...", printable(message))
    lines = (line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]}..." for line in message.split("\n"))
    message = "\n".join(lines)
    return message if len(message) <= _LONGEST else f"{message[:_LONGEST]}..."


class DiffCompressError(Exception):
    """A failure told to the user: `message` says what happened, with the value, and why; `hint` what to do next."""

    exit_status = ExitStatus.RUN_FAILED

    def __init__(self, message: str, hint: str = "") -> None:
        self.message = told_shortly(message)
        super().__init__(self.message)
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


class GradientError(DiffCompressError):
    """Gradients that are not finite, as those that a half precision cannot hold."""


class RunStopped(DiffCompressError):
    """The run ended early but the same command goes on: SIGTERM, a full disk."""

    exit_status = ExitStatus.STOPPED


class RunInterrupted(RunStopped):
    """Ctrl-C: checkpointed, resumable."""

    exit_status = ExitStatus.INTERRUPTED
