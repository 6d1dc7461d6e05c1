"""Temporary folders of ours go in the end, after a kill too, and nobody else's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from typing import Any

from diffcompress.records.scratch import scratch


def test_what_a_kill_left_goes_with_the_next_one_and_what_is_in_use_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code = "import sys, pathlib\nfrom diffcompress.records.scratch import scratch\nwith scratch('proof') as f:\n"
    code += "    (f / 'inputs').touch()\n    print(f, flush=True)\n    sys.stdin.read()"
    command = [sys.executable, "-c", code]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    killed, living = (subprocess.Popen(command, env=os.environ | {"TMPDIR": str(tmp_path)}, **pipes) for _ in range(2))
    places = [process.stdout.readline().strip() for process in (killed, living)]
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    mine = tmp_path / "diffcompress-proof-of-mine"  # a run folder, or anything else of that name
    (mine / "bank").mkdir(parents=True)
    os.utime(mine, (0, 0))
    (tmp_path / "diffcompress-empty").mkdir()
    os.utime(tmp_path / "diffcompress-empty", (0, 0))
    with scratch("parts") as own, scratch("proof") as other:
        assert not os.path.exists(os.path.dirname(places[0])) and os.path.exists(places[1])
        assert own.is_dir() and other.is_dir() and own != other
    living.communicate("")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["diffcompress-proof-of-mine"]
