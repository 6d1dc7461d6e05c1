"""Python processes that need not load torch and diffusers, which most of a small test's time would go into.

A server loads them once, at the first request, and forks: each request is a command line of `python` with its
environment, folder and streams, and runs in a process of its own as it would in a fresh interpreter. Nothing of
diffcompress is loaded there. Where the environment changes what those libraries read while they load, or the command
line is of a kind not known here, the fork becomes the real interpreter.

This file is three things: the server (`serve`), what stands for `python` where only a path is taken (as a script), and
`Warm`, a process started from a test.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

SOCKET = "DIFFCOMPRESS_TESTS_WARM"
# What libraries read while they load; any other value than the server's needs a fresh interpreter.
_READ_ON_LOADING = ("HF_", "HUGGING", "TRANSFORMERS_", "DIFFUSERS_", "TORCH_", "OMP_", "MKL_", "PYTHON", "USE_")
_NOT_READ = (
    *("PYTHON_EXEC", "PYTHONUNBUFFERED", "TORCH_NCCL_ASYNC_ERROR_HANDLING"),  # torchrun's, for its processes
    *("HF_TOKEN", "HF_HUB_OFFLINE", "PYTHONIOENCODING"),  # read when it is needed, and below
)
# As diffcompress has it, which sets them too late here: libraries keep their bars and warnings to themselves.
_SILENCE = {
    "DIFFUSERS_VERBOSITY": "error",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
}
_LOADED = ("accelerate", "jinja2", "pydantic", "rich", "transformers", "typer", "yaml")
_CLASSES = ("DDPMPipeline", "UNet2DModel", "StableDiffusionPipeline", "DiTPipeline", "StableDiffusion3Pipeline")
_WIDTH = 12  # of a number on the wire


class Warm:
    """`python *arguments` in a warm process, as much of subprocess.Popen as tests use."""

    def __init__(self, arguments: list[str], env: dict[str, str], streams: tuple[int, int, int], cwd: str = "") -> None:
        self._server = socket.socket(socket.AF_UNIX)
        self._server.connect(os.environ[SOCKET])
        asked = {"arguments": arguments, "env": env, "cwd": cwd or os.getcwd()}
        body = json.dumps(asked).encode("ascii")
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", streams))]
        self._server.sendmsg([len(body).to_bytes(4, "big")], rights)
        self._server.sendall(body)
        self.returncode: int | None = None
        self.pid = self._answer()

    def __enter__(self) -> Warm:
        return self

    def __exit__(self, *_: object) -> None:
        if self.poll() is None:
            self.send_signal(signal.SIGKILL)
        self._server.close()

    def poll(self) -> int | None:
        """The exit code, negative for a signal, or None while it runs."""
        return self.wait(0)

    def wait(self, seconds: float | None = None) -> int | None:
        if self.returncode is None:
            self._server.settimeout(seconds)
            with contextlib.suppress(BlockingIOError, TimeoutError):
                self.returncode = self._answer()
        return self.returncode

    def _answer(self) -> int:
        """The next number that the server says; -SIGKILL where it says no more."""
        return int(self._server.recv(_WIDTH) or -signal.SIGKILL)

    def send_signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)


def main() -> NoReturn:
    """In place of `python`: ask the server, hand on what asks it to stop, and end as the process did."""
    asks_to_stop = (signal.SIGINT, signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_BLOCK, asks_to_stop)
    process = Warm(sys.argv[1:], dict(os.environ), (0, 1, 2))
    for number in asks_to_stop:
        signal.signal(number, lambda number, _: process.send_signal(number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, asks_to_stop)
    code = process.wait()
    assert code is not None
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def start(folder: str, env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """A server whose libraries load in `env`; it listens in `folder`, where what stands for `python` lies too."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(place(folder))
    listener.listen(16)
    script(interpreter(folder))
    with listener:
        command = [sys.executable, "-c", f"from tests.warm import serve; serve({listener.fileno()})"]
        root = os.path.dirname(os.path.dirname(__file__))
        env = {**env, SOCKET: place(folder)}
        with open(os.path.join(folder, "log"), "w") as log:
            return subprocess.Popen(command, pass_fds=[listener.fileno()], cwd=root, env=env, stdout=log, stderr=log)


@contextlib.contextmanager
def started(folder: str, env: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """A server of one's own, for processes whose `env` is none that the other can serve; `env`, and where to ask."""
    with start(folder, os.environ | env) as server:
        try:
            yield {**env, SOCKET: place(folder)}
        finally:
            server.kill()


def place(folder: str) -> str:
    """Where the server of `folder` listens."""
    return os.path.join(folder, "socket")


def interpreter(folder: str = "") -> str:
    """The path of what stands for `python`, of the server that this process asks or of that in `folder`."""
    return os.path.join(folder or os.path.dirname(os.environ[SOCKET]), "python")


def script(path: str, *arguments: str) -> None:
    """An executable file at `path` that is `python *arguments` and what it is called with."""
    with open(path, "w", opener=lambda path, flags: os.open(path, flags, 0o755)) as file:
        given = " ".join(f'"{argument}"' for argument in arguments)
        file.write(f'#!/bin/sh\nexec "{sys.executable}" -IS "{__file__}" {given} "$@"\n')


def serve(listener_fd: int) -> NoReturn:
    """Fork for every request, until it is killed or its starter is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    parent, loaded, told = os.getppid(), False, _reads(dict(os.environ))
    listener = socket.socket(fileno=listener_fd)
    listener.settimeout(2)
    while os.getppid() == parent:
        with contextlib.suppress(TimeoutError):
            connection, _ = listener.accept()
            if not loaded:
                _load()
                loaded = True
            if os.fork() == 0:
                listener.close()
                _attend(connection, told)
            connection.close()
    os._exit(0)


def _load() -> None:
    import gc
    import importlib
    import multiprocessing

    os.environ |= _SILENCE
    import diffusers
    import torch

    multiprocessing.set_executable(interpreter())
    torch.set_num_threads(1)
    for name in _LOADED:
        importlib.import_module(name)
    for name in _CLASSES:
        getattr(diffusers, name)  # which are lazy
    gc.collect()
    gc.freeze()


def _attend(connection: socket.socket, told: dict[str, str]) -> NoReturn:
    """Start one process, say its id, wait for it, and say its exit code."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    connection.settimeout(None)
    head, rights, *_ = connection.recvmsg(4, socket.CMSG_SPACE(12))
    streams = array.array("i", rights[0][2])
    length, body = int.from_bytes(head, "big"), b""
    while len(body) < length:
        body += connection.recv(length - len(body))
    pid = os.fork()
    if pid == 0:
        connection.close()
        _become(json.loads(body), list(streams), told)
    for stream in streams:
        os.close(stream)
    with contextlib.suppress(BrokenPipeError):  # a client that was killed
        connection.sendall(b"%*d" % (_WIDTH, pid))
        _, status = os.waitpid(pid, 0)
        connection.sendall(b"%*d" % (_WIDTH, os.waitstatus_to_exitcode(status)))
    os._exit(0)


def _become(asked: dict[str, Any], streams: list[int], told: dict[str, str]) -> NoReturn:
    """The rest of this process: the command line that was asked for. told: what the server read while it loaded."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(asked["cwd"])
    arguments, fresh = list(asked["arguments"]), _reads(asked["env"]) != told
    os.environ.clear()
    os.environ.update(asked["env"])
    isolated = arguments[:1] == ["-I"]
    command = arguments[isolated or arguments[:1] == ["-u"] :]  # -u: streams are written by lines in any case
    if fresh or not command or (command[0].startswith("-") and command[0] not in ("-m", "-c")):
        os.execv(sys.executable, [sys.executable, *arguments])
    code = 1
    try:
        code = _run(command, isolated)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _run(command: list[str], isolated: bool) -> int:
    import random
    import runpy

    import huggingface_hub
    import numpy as np

    huggingface_hub.constants.HF_HUB_OFFLINE = os.environ.get("HF_HUB_OFFLINE") == "1"
    random.seed()
    np.random.seed()
    told = os.environ.get("PYTHONIOENCODING", "utf-8")
    for name, number in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
        errors = "backslashreplace" if number == 2 else "strict"
        stream = os.fdopen(number, "w" if number else "r", 1, encoding=told, errors=errors, closefd=False)
        setattr(sys, name, stream)
    sys.path[:] = [path for path in sys.path if path and not (isolated and path in _python_path())]
    try:
        if command[0] == "-m":
            sys.path.insert(0, os.getcwd())
            sys.argv = command[1:]
            runpy.run_module(command[1], run_name="__main__", alter_sys=True)
        elif command[0] == "-c":
            sys.path.insert(0, "")
            sys.argv = ["-c", *command[2:]]
            exec(compile(command[1], "<string>", "exec"), {"__name__": "__main__"})
        else:
            sys.argv = command
            runpy.run_path(command[0], run_name="__main__")
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
            return 1
        return stop.code or 0
    return 0


def _python_path() -> list[str]:
    return os.environ.get("PYTHONPATH", "").split(os.pathsep)


def _reads(env: dict[str, str]) -> dict[str, str]:
    """What the environment tells libraries that load, but for what changes nothing here: text is UTF-8 in any case."""
    same = {("PYTHONUTF8", "1"), *_SILENCE.items()}
    read = {name: value for name, value in env.items() if name.startswith(_READ_ON_LOADING)}
    return {name: read[name] for name in read if name not in _NOT_READ and (name, read[name]) not in same}


if __name__ == "__main__":
    main()
