"""The Typer app, the options that every command has, and the one place where exceptions become exit codes."""

from __future__ import annotations

import contextlib
import errno
import inspect
import mmap
import os
import signal
import sys
import traceback as tracebacks
import warnings
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Annotated, Any

import typer

from diffcompress import __version__
from diffcompress.cli import commands
from diffcompress.cli.console import Output
from diffcompress.errors import (
    DiffCompressError,
    ExitStatus,
    RunStopped,
    UsageError,
    is_full_disk,
    is_out_of_memory,
    told_shortly,
)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"diffcompress {__version__}")
        raise typer.Exit()


_Version = Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")]
_COMMON: dict[str, Any] = {
    "json": Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")],
    "quiet": Annotated[bool, typer.Option("--quiet", help="No progress; warnings and errors stay.")],
    "traceback": Annotated[bool, typer.Option("--traceback", help="Full traceback of a failure.")],
    "offline": Annotated[bool, typer.Option("--offline", help="Never touch the network (also HF_HUB_OFFLINE=1).")],
    "version": _Version,
}


def _with_common_options(body: Callable[..., None]) -> Callable[..., None]:
    """`body(console=Output, **options)` as a command that also has the common options, inside the error boundary."""

    def command(**options: Any) -> None:
        common = {name: options.pop(name) for name in _COMMON}
        console = Output(as_json=common["json"], quiet=common["quiet"])
        with _boundary(console, common["traceback"]):
            _check_texts(options)
            _prepare_environment(common["offline"])
            # Whatever a library prints belongs to stderr; Output keeps the true stdout for the result.
            with contextlib.redirect_stdout(sys.stderr):
                body(console=console, **options)

    own = [p for p in inspect.signature(body, eval_str=True).parameters.values() if p.name != "console"]
    flags = [
        inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=a) for n, a in _COMMON.items()
    ]
    signature = inspect.Signature([p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own] + flags)
    command.__signature__ = signature  # type: ignore[attr-defined]
    command.__annotations__ = {name: parameter.annotation for name, parameter in signature.parameters.items()}
    command.__name__, command.__doc__ = body.__name__, body.__doc__
    return command


def _check_texts(options: dict[str, Any]) -> None:
    """Raise UsageError for bytes on the command line that are no text: no file of ours could hold them."""
    for value in options.values():
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and any("\ud800" <= letter <= "\udfff" for letter in text):
                shown = text.encode("utf-8", "backslashreplace").decode()
                raise UsageError(f"'{shown}' holds bytes that are no UTF-8", "rename the file, or write UTF-8")


def _prepare_environment(offline: bool) -> None:
    """Settings that the libraries read when they are imported, which is after this."""
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
        os.environ.setdefault("WANDB_MODE", "offline")
    for name in ("DIFFUSERS_VERBOSITY", "TRANSFORMERS_VERBOSITY"):
        os.environ.setdefault(name, "error")
    # Their bars and their advice to callers would be read as ours.
    for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "TQDM_DISABLE"):
        os.environ.setdefault(name, "1")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(diffusers|transformers|huggingface_hub)\.")


# What the user can mend: permissions, and a file where a folder should be or the other way round.
_IN_THE_WAY = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENOTEMPTY,
    errno.ELOOP,
    errno.ENXIO,
)


# Address space given back before an error is told: where memory has ended, telling needs some, too.
_RESERVE = 16 << 20


class _Terminated(BaseException):
    """SIGTERM where no job looks out for it yet, as KeyboardInterrupt is Ctrl-C: no library catches it on the way."""


def _terminate(_number: int, _frame: FrameType | None) -> None:
    raise _Terminated


@contextlib.contextmanager
def _boundary(console: Output, traceback: bool) -> Iterator[None]:
    ours = {signal.SIGTERM: _terminate, signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in ours.items()}
    reserve = None
    try:
        reserve = mmap.mmap(-1, _RESERVE)
        yield
    except (typer.Exit, SystemExit, BrokenPipeError):
        raise
    except BaseException as error:
        if reserve is not None:
            reserve.close()
        console.close()
        message, hint, status = explain(error)
        if traceback:
            tracebacks.print_exception(error, file=console.stderr)
        console.error(told_shortly(message), hint)
        raise typer.Exit(int(status)) from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        console.close()


def explain(error: BaseException) -> tuple[str, str, ExitStatus]:
    """What happened, what to do next, and the exit status of any exception."""
    if isinstance(error, DiffCompressError):
        cause = error.__cause__
        # What a library could not do for want of memory or disk is no fault of what it was given.
        if cause is None or not (is_out_of_memory(cause) or is_full_disk(cause)) or isinstance(error, RunStopped):
            return error.message, error.hint, error.exit_status
        error = cause
    told = " ".join(str(error).split())
    if isinstance(error, KeyboardInterrupt):
        return (
            "interrupted",
            "run the same command again; shrink goes on from its last checkpoint",
            ExitStatus.INTERRUPTED,
        )
    if isinstance(error, _Terminated):
        return (
            "stopped by SIGTERM",
            "run the same command again; shrink goes on from where it stood",
            ExitStatus.STOPPED,
        )
    if is_full_disk(error):
        return f"the disk is full ({told})", "free some space and run the same command again", ExitStatus.STOPPED
    if is_out_of_memory(error):
        hint = "free memory or use a larger machine; shrink takes a smaller batch with --set training.batch_size=16"
        return f"out of memory ({told or type(error).__name__})", hint, ExitStatus.DOES_NOT_FIT
    if isinstance(error, OSError) and error.errno in _IN_THE_WAY:
        where = error.filename2 or error.filename
        return (
            f"cannot use {where}: {error.strerror}",
            "choose another path, or mend what lies there and its permissions",
            ExitStatus.USAGE,
        )
    return f"unexpected {type(error).__name__}: {told or 'no message'}", "--traceback shows more", ExitStatus.RUN_FAILED


def _build() -> typer.Typer:
    settings: dict[str, Any] = {"rich_markup_mode": None, "add_completion": False, "no_args_is_help": True}
    app = typer.Typer(name="diffcompress", pretty_exceptions_enable=False, **settings)
    recipes = typer.Typer(help="Built-in recipes.", **settings)

    @app.callback()
    def about(version: _Version = False) -> None:
        """Turn a diffusion teacher into a much smaller student of the same diffusers class."""

    for body in (commands.shrink, commands.plan, commands.evaluate, commands.report):
        app.command()(_with_common_options(body))
    app.command()(_with_common_options(commands.env))
    recipes.command("list")(_with_common_options(commands.list_recipes))
    recipes.command("show")(_with_common_options(commands.show_recipe))
    app.add_typer(recipes, name="recipes")
    return app


app = _build()


def main() -> None:
    """The console script."""
    app(prog_name="diffcompress")
