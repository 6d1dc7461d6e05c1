"""Machines of one run tell each other that they are there: one that falls silent ends the run in minutes.

Processes wait for each other for days, as one may work alone for hours, and a machine that loses its network or its
power closes no connection. So the first process of each machine counts in the store by which all found each other.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
import time
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed import Store

# Seconds between two beats, and without one after which a machine counts as gone.
BEAT, SILENCE = 10.0, 300.0
# As a run that was stopped and can be resumed.
EXIT_CODE = 75


@functools.cache
def start() -> None:
    """Beat and listen from now on, in threads that end with the process; nothing to do on one machine, nor again."""
    rank, count = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    each = int(os.environ.get("LOCAL_WORLD_SIZE", count))
    if each >= count or rank % each:
        return
    own, others = rank // each, [machine for machine in range(count // each) if machine != rank // each]
    heard = dict.fromkeys(others, time.monotonic())
    for work in (_beat, _watch):
        threading.Thread(target=work, args=(own, heard), daemon=True).start()


def _store() -> Store:
    from torch.distributed import TCPStore

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=SILENCE))


def _beat(own: int, heard: dict[int, float]) -> None:
    """Count, and note when each other machine's count last rose. It may hang with its connection."""
    seen, number, store = dict.fromkeys(heard, b""), 0, None
    while True:
        try:
            store = store or _store()
            number += 1
            store.set(_key(own), str(number))
            for machine in seen:
                if store.check([_key(machine)]) and (now := store.get(_key(machine))) != seen[machine]:
                    seen[machine], heard[machine] = now, time.monotonic()
        except Exception:  # of many kinds: a store that does not answer is silence, too
            store = None
        time.sleep(BEAT)


def _watch(own: int, heard: dict[int, float]) -> None:
    """End this process, which may wait for the others in a call that knows no end, when one has fallen silent."""
    while True:
        time.sleep(BEAT / 2)
        silent = [machine for machine, last in heard.items() if time.monotonic() - last > SILENCE]
        if silent:
            names = ", ".join(map(str, silent))
            told = (
                f"error: machine {own} has not heard of machine {names} for {SILENCE:.0f} s: its network or its power "
                "is gone, and this process ends\nhint: run the same lines again on all machines: the run goes on from "
                "its last checkpoint"
            )
            print(told, file=sys.stderr, flush=True)
            os._exit(EXIT_CODE)


def _key(machine: int) -> str:
    return f"diffcompress/machine-{machine}"
