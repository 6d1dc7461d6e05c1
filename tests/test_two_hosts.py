"""Two machines, as two network namespaces with a cable between them: torchrun on both, and one that dies."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest

from tests import tutorials
from tests.jobs.tiny_teacher import command, environment, same, save_teacher, weights

ADDRESSES = ("10.77.31.1", "10.77.31.2")
# The options of torchrun on the page.
WORDS = tutorials.command("many-gpus", "torchrun --nnodes").words
LAUNCHER = dict(zip(WORDS[1:11:2], WORDS[2:11:2], strict=True))
pytestmark = pytest.mark.slow


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[str, str]]:
    """Names of the namespaces."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces take root, and ip")
    names = (f"dc{os.getpid()}a", f"dc{os.getpid()}b")
    try:
        for name in names:
            _ip("netns", "add", name)
        _ip("link", "add", "cable", "netns", names[0], "type", "veth", "peer", "name", "cable", "netns", names[1])
        for name, address in zip(names, ADDRESSES, strict=True):
            _ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
            for link in ("lo", "cable"):
                _ip("-n", name, "link", "set", link, "up")
        yield names
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
    finally:
        for name in names:
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip("netns", "del", name)


def _start(hosts: tuple[str, str], arguments: list[str]) -> list[subprocess.Popen[str]]:
    """The command `arguments` on both hosts."""
    env = environment(ACCELERATE_USE_CPU="true", GLOO_SOCKET_IFNAME="cable")
    started = []
    for number, host in enumerate(hosts):
        options = LAUNCHER | {"--node_rank": str(number), "--nproc_per_node": "1", "--master_addr": ADDRESSES[0]}
        launcher = [sys.executable, "-m", "torch.distributed.run", *chain.from_iterable(options.items())]
        whole = ["ip", "netns", "exec", host, *launcher, *arguments[1:]]
        started.append(subprocess.Popen(whole, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    return started


# As the command, with a shorter patience.
HASTY = """
import sys
from diffcompress import heartbeat
from diffcompress.__main__ import main
heartbeat.BEAT, heartbeat.SILENCE = 0.5, 8.0
main()
"""


def test_a_host_without_network_ends_the_run_and_is_told(hosts: tuple[str, str], tmp_path: Path) -> None:
    teacher = save_teacher(tmp_path / "teacher")
    (tmp_path / "hasty.py").write_text(HASTY)
    arguments = command(teacher, tmp_path / "run", training__checkpoint_every_seconds=0.001, stages__1__num_steps=5000)
    log = tmp_path / "run" / "stage-2-place" / "metrics.jsonl"
    started = _start(hosts, ["", str(tmp_path / "hasty.py"), *arguments[3:]])
    while not log.exists() or len(log.read_text().splitlines()) < 4:
        assert started[0].poll() is None, started[0].communicate()
        time.sleep(0.01)
    _ip("-n", hosts[1], "link", "set", "cable", "down")
    try:
        told = [process.communicate(timeout=120)[1] for process in started]
    finally:
        _ip("-n", hosts[1], "link", "set", "cable", "up")
    assert "error: machine 0 has not heard of machine 1 for 8 s" in told[0]
    assert "error: machine 1 has not heard of machine 0 for 8 s" in told[1]
    assert all(process.returncode != 0 for process in started)


OUTLIVING = """
import os, time
from diffcompress import heartbeat
heartbeat.BEAT, heartbeat.SILENCE = 0.2, 3.0
heartbeat.start()
time.sleep(12.0 if os.environ["RANK"] == "0" else 2.0)
"""


def test_a_host_that_came_to_its_end_is_not_missed(hosts: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "outliving.py").write_text(OUTLIVING)
    _ended(_start(hosts, ["", str(tmp_path / "outliving.py")]))


def _ended(started: list[subprocess.Popen[str]]) -> list[str]:
    told = [process.communicate(timeout=240)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], told
    return told


def test_a_run_on_two_hosts_goes_on_after_one_of_them_died(hosts: tuple[str, str], tmp_path: Path) -> None:
    teacher = save_teacher(tmp_path / "teacher")
    _ended(_start(hosts, command(teacher, tmp_path / "whole")))
    arguments = command(teacher, tmp_path / "run", training__checkpoint_every_seconds=0.001)
    log = tmp_path / "run" / "stage-2-place" / "metrics.jsonl"
    first, second = _start(hosts, arguments)
    while not log.exists() or len(log.read_text().splitlines()) < 4:
        assert first.poll() is None, first.communicate()
        time.sleep(0.01)
    dead = subprocess.run(["ip", "netns", "pids", hosts[1]], check=True, capture_output=True, text=True)
    for process in dead.stdout.split():
        os.kill(int(process), signal.SIGKILL)
    second.communicate()
    _, told = first.communicate(timeout=120)
    assert first.returncode != 0, told
    assert not (tmp_path / "run" / "pipeline").exists()
    _ended(_start(hosts, arguments))
    assert same(weights(tmp_path / "run"), weights(tmp_path / "whole"))
