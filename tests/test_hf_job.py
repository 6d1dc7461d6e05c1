"""examples/hf_job.sh: the job that the real `hf` would ask for, and its command, run here."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

from tests import tutorials, warm
from tests.jobs.tiny_teacher import environment, save_teacher, settings

ROOT = Path(__file__).parents[1]
PAGE = tutorials.command("many-gpus", "hf_job.sh").words


def test_a_job_stops_in_time_and_its_next_attempt_goes_on(tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "pip").write_text("#!/bin/sh\n")
    (programs / "pip").chmod(0o755)
    warm.script(str(programs / "diffcompress"), "-m", "diffcompress")
    path = os.pathsep.join(map(str, (programs, Path(sys.executable).parent, os.environ["PATH"])))
    teacher = save_teacher(tmp_path / "teacher")
    options = " ".join(settings())
    own = {"TEACHER": str(teacher), "RATIO": "0.3", "BUCKET": "me/runs", "HOURS": "6", "SHRINK_OPTIONS": options}
    assert {word.partition("=")[0] for word in PAGE[:-2]} <= own.keys() and PAGE[-2] == "sh"
    asked = environment(**own, JOB_OPTIONS="--dry-run", HF_TOKEN="hf_none", PATH=path)
    command = ["sh", str(ROOT / PAGE[-1])]
    told = subprocess.run(command, env=asked, capture_output=True, text=True, check=True).stdout
    assert re.search(r"flavor +a100-large\n +timeout +6h\n +attempts +4\n", told), told
    assert re.search(r"volumes +hf://buckets/me/runs:/runs\n", told) and "HF_TOKEN=***" in told
    given = dict(re.findall(r"^ +(?:env +)?(\w+)=(.*)$", told, flags=re.MULTILINE))
    assert given["SECONDS_LEFT"] == str(6 * 3600 - 900) and given["NAME"] == "teacher-0.3"
    words = shlex.split(told[told.index("sh -c") : told.index("\n  flavor")])

    def attempt(seconds: str) -> subprocess.CompletedProcess[str]:
        here = own | {"NAME": given["NAME"], "SECONDS_LEFT": seconds, "RUNS": str(tmp_path / "runs"), "PATH": path}
        return subprocess.run(words, env=environment(**here), capture_output=True, text=True, check=False)

    stopped = attempt("2")
    run = tmp_path / "runs" / "teacher-0.3"
    assert stopped.returncode in (75, 128 + signal.SIGTERM), stopped.stderr  # the latter before its work began
    assert not (run / "pipeline").exists()
    assert attempt(given["SECONDS_LEFT"]).returncode == 0
    assert (run / "pipeline").is_dir()
