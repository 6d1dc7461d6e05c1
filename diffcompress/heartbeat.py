"""Machines of one run tell each other that they are there: one that falls silent ends the run in minutes.

Processes wait for each other for days, as one may work alone for hours, and a machine that loses its network or its
power closes no connection. So the first process of each machine counts in the store by which all found each other.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import math
import os
import sys
import threading
import time
from datetime import timedelta
from typing import TYPE_CHECKING

from diffcompress.errors import ExitStatus

if TYPE_CHECKING:
    from torch.distributed import Store

# Seconds between two beats, and without one after which a machine counts as gone.
BEAT, SILENCE = 10.0, 300.0
# Seconds that a process which comes to its end waits to say so.
FAREWELL = 5.0
# In place of a count: of a machine whose process came to its end, which another may outlive.
ENDED = b"ended"


@functools.cache
def start() -> None:
    """Beat and listen from now on, in threads that end with the process; nothing to do on one machine, nor again."""
    rank, count = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    each = int(os.environ.get("LOCAL_WORLD_SIZE", count))
    if each >= count or rank % each:
        return
    own, others = rank // each, [machine for machine in range(count // each) if machine != rank // each]
    heard, ending = dict.fromkeys(others, time.monotonic()), threading.Event()
    atexit.register(_end, own, ending)
    threading.Thread(target=_beat, args=(own, heard, ending), daemon=True).start()
    threading.Thread(target=_watch, args=(own, heard, ending), daemon=True).start()


def _store(patience: float) -> Store:
    from torch.distributed import TCPStore

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=patience))


def _beat(own: int, heard: dict[int, float], ending: threading.Event) -> None:
    """Count, and note when each other machine's count last rose. It may hang with its connection."""
    seen, number, store = dict.fromkeys(heard, b""), 0, None
    while not ending.is_set():
        try:
            store = store or _store(SILENCE)
            number += 1
            store.set(_key(own), str(number))
            for machine in seen:
                now = store.get(_key(machine)) if store.check([_key(machine)]) else seen[machine]
                if now != seen[machine]:
                    seen[machine], heard[machine] = now, math.inf if now == ENDED else time.monotonic()
        except Exception:  # of many kinds: a store that does not answer is silence, too
            store = None
        ending.wait(BEAT)


def _end(own: int, ending: threading.Event) -> None:
    ending.set()
    with contextlib.suppress(Exception):  # of many kinds: the others may have ended, and the store with them
        _store(FAREWELL).set(_key(own), ENDED.decode())


def _watch(own: int, heard: dict[int, float], ending: threading.Event) -> None:
    """End this process, which may wait for the others in a call that knows no end, when one has fallen silent."""
    while not ending.wait(BEAT / 2):
        silent = [machine for machine, last in heard.items() if time.monotonic() - last > SILENCE]
        if silent:
            names = ", ".join(map(str, silent))
            told = (
                f"error: machine {own} has not heard of machine {names} for {SILENCE:.0f} s: its network or its power "
                "is gone, and this process ends\nhint: run the same lines again on all machines: the run goes on from "
                "its last checkpoint"
            )
            print(told, file=sys.stderr, flush=True)
            os._exit(ExitStatus.STOPPED)


def _key(machine: int) -> str:
    return f"diffcompress/machine-{machine}"
