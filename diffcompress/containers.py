"""How much memory a container leaves a process, which is less than its machine has free."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

# By version of Linux's control groups: limit, use, and of what is used pages of files that can be dropped.
_FILES = {
    "v2": ("memory.max", "memory.current", "inactive_file"),
    "v1": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def memory_left(mounted: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float:
    """Bytes until the limit of the tightest control group that this process is in; inf where there is none.

    mounted: where control groups are; own: lines `number:controllers:path` that name this process's.
    """
    try:
        lines = own.read_text().splitlines()
    except OSError:  # no Linux
        return math.inf
    return min((_left(group, version) for version, group in _groups(mounted, lines)), default=math.inf)


def _groups(mounted: Path, lines: list[str]) -> Iterator[tuple[str, Path]]:
    """Those that the process is in, with all above them: a limit holds for what is below. A container may see its own
    group alone, as the topmost."""
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        version, top = ("v1", mounted / "memory") if controllers else ("v2", mounted)
        group = Path(path.strip("/"))
        yield from ((version, top / one) for one in (group, *group.parents))


def _left(group: Path, version: str) -> float:
    limit_at, used_at, droppable = _FILES[version]
    try:
        limit, used = (group / limit_at).read_text().strip(), int((group / used_at).read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return math.inf if limit == "max" else max(0, int(limit) - used + int(stat.get(droppable, 0)))
    except (OSError, ValueError):  # not there, or not ours to read
        return math.inf
