"""examples/slurm.sh under a Slurm of one machine: what it calls is there, and does there what Slurm would."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

from tests import tutorials, warm
from tests.jobs.tiny_teacher import environment, save_teacher, settings

ROOT = Path(__file__).parents[1]
PAGE = tutorials.command("many-gpus", "slurm.sh").words
SRUN = '#!/bin/sh\nexec "$@"\n'
SCONTROL = '#!/bin/sh\nif [ "$1" = show ]; then echo 127.0.0.1; else echo "$@" > requeued; fi\n'


def test_a_job_that_is_told_to_stop_saves_and_is_queued_again(tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    warm.script(str(programs / "torchrun"), "-m", "torch.distributed.run")
    own = {
        "TEACHER": str(save_teacher(tmp_path / "teacher")),
        "RATIO": "0.3",
        "OUT": str(tmp_path / "run"),
        "PROCESSES": "2",
        "SHRINK_OPTIONS": " ".join(settings()),
        "SLURM_JOB_ID": "77",
        "SLURM_JOB_NODELIST": "one",
        "SLURM_JOB_NUM_NODES": "1",
        "ACCELERATE_USE_CPU": "true",
        "PYTHON_EXEC": warm.interpreter(),
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
    }
    assert {word.partition("=")[0] for word in PAGE[:-2]} <= own.keys() and PAGE[-2] == "sbatch"

    def start() -> subprocess.Popen[str]:
        command = ["sh", str(ROOT / PAGE[-1])]
        return subprocess.Popen(command, cwd=tmp_path, env=environment(**own), stderr=subprocess.PIPE, text=True)

    job, log = start(), tmp_path / "run" / "stage-1-lift" / "metrics.jsonl"
    while not log.exists() or not log.read_text():
        assert job.poll() is None, job.communicate()
        time.sleep(0.01)
    job.send_signal(signal.SIGTERM)
    _, told = job.communicate(timeout=120)
    assert job.returncode == 0, told
    assert "slurm: stopped, queued again" in told
    assert (tmp_path / "requeued").read_text() == "requeue 77\n"
    assert not (tmp_path / "run" / "pipeline").exists()
    assert any((tmp_path / "run").glob("stage-*/checkpoints/step-*"))
    (tmp_path / "requeued").unlink()
    again = start()
    _, told = again.communicate(timeout=240)
    assert again.returncode == 0, told
    assert (tmp_path / "run" / "pipeline").is_dir() and not (tmp_path / "requeued").exists()
