"""What a container leaves of a machine's memory: as the kernel's files say, of both versions of control groups."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import torch

from diffcompress.containers import memory_left
from diffcompress.runtime import free_memory
from tests.cli.command import spawn

GB = 2**30


def group(folder: Path, limit: str, used: int, droppable: int = 0, *, v1: bool = False) -> None:
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if v1 else ("memory.max", "memory.current")
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in zip(names, (limit, str(used)), strict=True):
        (folder / name).write_text(f"{value}\n")
    prefix = "total_" if v1 else ""
    (folder / "memory.stat").write_text(f"anon 5\n{prefix}inactive_file {droppable}\n")


@pytest.fixture
def own(tmp_path: Path) -> Path:
    file = tmp_path / "cgroup"
    file.write_text("0::/docker/abc\n")
    return file


def test_the_tightest_group_above_a_process_counts(tmp_path: Path, own: Path) -> None:
    mounted = tmp_path / "mounted"
    group(mounted / "docker" / "abc", str(8 * GB), 5 * GB, GB)
    group(mounted / "docker", "max", 50 * GB)
    assert memory_left(mounted, own) == 4 * GB
    group(mounted / "docker", str(6 * GB), 5 * GB)
    assert memory_left(mounted, own) == GB
    group(mounted / "docker", str(4 * GB), 5 * GB)
    assert memory_left(mounted, own) == 0


def test_a_container_that_sees_its_own_group_alone(tmp_path: Path, own: Path) -> None:
    group(tmp_path / "mounted", str(2 * GB), GB)
    assert memory_left(tmp_path / "mounted", own) == GB


def test_the_first_version_of_control_groups(tmp_path: Path, own: Path) -> None:
    own.write_text("3:cpuset:/\n4:memory:/job/7\n0::/\n")
    group(tmp_path / "memory" / "job" / "7", str(3 * GB), 2 * GB, GB // 2, v1=True)
    group(tmp_path / "memory", "9223372036854771712", 9 * GB, v1=True)
    assert memory_left(tmp_path, own) == 1.5 * GB


def test_without_a_limit_there_is_none(tmp_path: Path, own: Path) -> None:
    assert memory_left(tmp_path / "nothing", own) == math.inf
    assert memory_left(tmp_path, tmp_path / "nothing") == math.inf
    group(tmp_path / "docker" / "abc", "max", GB)
    assert memory_left(tmp_path, own) == math.inf
    (tmp_path / "docker" / "abc" / "memory.max").write_text("much\n")
    assert memory_left(tmp_path, own) == math.inf


@pytest.mark.skipif(not os.access("/sys/fs/cgroup", os.W_OK), reason="control groups are made by root")
def test_a_process_under_a_limit_plans_with_what_is_left_of_it() -> None:
    top = Path("/sys/fs/cgroup")
    v1 = (top / "memory").is_dir()
    own = (top / "memory" if v1 else top) / f"diffcompress-test-{os.getpid()}"
    try:
        own.mkdir()
        (own / ("memory.limit_in_bytes" if v1 else "memory.max")).write_text(str(GB))
    except OSError as error:
        pytest.skip(f"no control groups here: {error}")
    code = (
        "import os; from pathlib import Path; Path(os.environ['GROUP'], 'cgroup.procs').write_text(str(os.getpid()))\n"
        "import torch; from diffcompress.runtime import free_memory; print(free_memory(torch.device('cpu')))"
    )
    try:
        done = spawn("-c", code, GROUP=str(own))
        assert done.returncode == 0, done.stderr
        assert 0 < int(done.stdout) <= GB < free_memory(torch.device("cpu"))
    finally:
        own.rmdir()
