"""Stopping is never losing: killed anywhere, the same command ends where an uninterrupted run does, bit for bit."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from diffcompress import recipe as recipes
from diffcompress.errors import RunStopped
from diffcompress.jobs.run import Run
from diffcompress.records.run_files import discard, read_json, write_json
from diffcompress.records.run_folder import RunFolder
from diffcompress.runtime import Progress, start
from tests.cli.command import run as cli
from tests.cli.command import spawn_fresh
from tests.jobs.tiny_teacher import command, environment, run, same, save_teacher, stop_when, weights


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return save_teacher(tmp_path_factory.mktemp("teacher") / "teacher")


@pytest.fixture(scope="module")
def uninterrupted(teacher, tmp_path_factory):
    output = tmp_path_factory.mktemp("uninterrupted") / "run"
    done = run(command(teacher, output, "--json"))
    assert done.returncode == 0, done.stderr
    return output


def lines(path):
    return len(path.read_text().splitlines()) if path.exists() else 0


def moments(folder):
    """Where to stop a run, and how often it checkpoints meanwhile."""
    lift, place = folder / "stage-1-lift", folder / "stage-2-place"
    return {
        "bank": (lambda: (folder / "bank" / "shard-00000.safetensors").exists(), 1e9),
        "lift": (lambda: lines(lift / "metrics.jsonl") >= 5, 0.001),
        "place": (lambda: lines(place / "metrics.jsonl") >= 4, 0.001),
        "place without a checkpoint": (lambda: lines(place / "metrics.jsonl") >= 4, 1e9),
        "checkpoint": (lambda: any((place / "checkpoints").glob("*.part")), 0.001),
    }


@pytest.mark.parametrize(
    "moment",
    [
        "bank",
        *(pytest.param(later, marks=pytest.mark.slow) for later in ("lift", "place", "place without a checkpoint")),
        "checkpoint",
    ],
)
def test_a_killed_run_resumes_bit_equal(teacher, uninterrupted, tmp_path, moment):
    output = tmp_path / "run"
    condition, every = moments(output)[moment]
    # How often a run checkpoints is part of its recipe, but must not be part of its result.
    arguments = command(teacher, output, "--json", training__checkpoint_every_seconds=every)
    killed = stop_when(arguments, condition)
    assert killed.returncode == -signal.SIGKILL
    assert not (output / "pipeline").exists()
    done = run(arguments)
    assert done.returncode == 0, done.stderr
    assert same(weights(output), weights(uninterrupted))
    assert json.loads(done.stdout)["student"]["params"] > 0
    for stage in ("stage-1-lift", "stage-2-place"):
        rows = [json.loads(line) for line in (output / stage / "metrics.jsonl").read_text().splitlines()]
        expected = [json.loads(line) for line in (uninterrupted / stage / "metrics.jsonl").read_text().splitlines()]
        assert [(r["step"], r["loss"]) for r in rows] == [(r["step"], r["loss"]) for r in expected]
    assert not list(output.rglob("*.part"))


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_stop_request_checkpoints_first(teacher, uninterrupted, tmp_path, number, status):
    output = tmp_path / "run"
    arguments = command(teacher, output, training__checkpoint_every_seconds=1e9)
    stopped = stop_when(arguments, lambda: lines(output / "stage-1-lift" / "metrics.jsonl") >= 5, number)
    assert stopped.returncode == status
    assert "run the same command again" in stopped.stderr
    (checkpoint,) = (output / "stage-1-lift" / "checkpoints").glob("step-*")
    assert json.loads((checkpoint / "state.json").read_text())["step"] >= 5
    assert run(arguments).returncode == 0
    assert same(weights(output), weights(uninterrupted))


def test_ctrl_c_on_a_terminal_does_not_spoil_the_export_proof(teacher, uninterrupted, tmp_path):
    """A terminal sends it to every process of the command, and the proof runs in one of its own."""
    output = shutil.copytree(uninterrupted, tmp_path / "run")
    discard(output / "export-proof.json")
    arguments = command(teacher, output)
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, start_new_session=True, env=environment())
    proofs: list[psutil.Process] = []
    while not proofs:
        assert process.poll() is None, process.communicate()
        proofs = psutil.Process(process.pid).children()
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 0, told
    assert same(weights(output), weights(uninterrupted))


def test_a_run_killed_while_it_is_given_more_time_trains_for_it(teacher, uninterrupted, tmp_path):
    """Its first training took the recipe's steps; wherever the kill strikes, the same command goes on to the end."""
    output = shutil.copytree(uninterrupted, tmp_path / "run")
    spent = sum(s for name, s in read_json(output / "timings.json").items() if name.startswith("stage-"))
    arguments = command(teacher, output, "--max-time", f"{2 * spent + 1}s")
    assert stop_when(arguments, lambda: not (output / "metrics.json").exists()).returncode == -signal.SIGKILL
    done = run(arguments)
    assert done.returncode == 0, done.stderr
    recipe = recipes.parse((output / "recipe.yaml").read_text(), "")
    assert recipe.num_steps > 30
    assert read_json(output / "stage-2-place" / "final" / "state.json")["step"] == recipe.num_steps
    assert read_json(output / "budget.json") == {"max_time": 2 * spent + 1}
    assert "is finished" in run(arguments).stderr


def test_the_time_of_a_step_that_is_stopped_counts(tmp_path):
    unused: dict[str, Any] = {"request": None, "teacher": None, "plan": None, "own": None, "progress": Progress()}
    one = Run(folder=RunFolder(tmp_path), runtime=start("cpu"), **unused)

    def stopped():
        with one.timed("bank"):
            time.sleep(0.05)
            raise RunStopped("stopped")

    for _ in range(2):
        with pytest.raises(RunStopped):
            stopped()
    assert read_json(tmp_path / "timings.json")["bank"] >= 0.1


def stamps(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_a_finished_run_is_answered_from_its_folder_and_another_is_refused(teacher, uninterrupted):
    before = stamps(uninterrupted)
    again = run(command(teacher, uninterrupted, "--json"))
    assert again.returncode == 0, again.stderr
    assert before == stamps(uninterrupted)
    assert "is finished" in again.stderr
    told, report = json.loads(again.stdout), json.loads((uninterrupted / "report.json").read_text())
    assert told == {name: report[name] for name in told}
    other = run(command(teacher, uninterrupted, "--seed", "1"))
    assert other.returncode == 2
    assert "not this run" in other.stderr
    assert "Traceback" not in other.stderr


def test_a_run_whose_defaults_have_changed_goes_on_by_its_own_recipe(teacher, uninterrupted, tmp_path):
    """As after an update of diffcompress: the same command then means another recipe."""
    output = tmp_path / "run"
    shutil.copytree(uninterrupted, output)
    asked = ("shrink", teacher, "--ratio", "0.3", "--output", output)
    refused = cli(*asked)
    assert refused.code == 2
    advised = re.search(r"^hint: with (--recipe) (\S+), and neither --set nor --seed", refused.stderr, re.MULTILINE)
    assert advised and advised[2] == str(output / "recipe.yaml")
    assert cli(*asked, *advised.groups()).code == 0
    assert same(weights(output), weights(uninterrupted))


def test_the_answer_needs_neither_bank_nor_diffusers(teacher, uninterrupted, tmp_path):
    moved = shutil.copytree(uninterrupted, tmp_path / "moved")
    shutil.rmtree(moved / "bank")
    shutil.rmtree(moved / "student-init")
    code = (
        "import sys\n"
        "from diffcompress.cli.app import app\n"
        f"try: app({command(teacher, moved, '--json')[3:]!r})\n"
        "except SystemExit as stop: assert not stop.code\n"
        "sys.exit(1 if 'diffusers' in sys.modules else 0)"
    )
    done = spawn_fresh("-c", code)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["pipeline"] == str(moved / "pipeline")
    assert not (moved / "bank").exists()


@pytest.mark.parametrize("lost", ["pipeline", "metrics.json", "pipeline/README.md", "report.html"])
def test_what_a_finished_run_has_lost_is_made_again(teacher, uninterrupted, tmp_path, lost):
    output = shutil.copytree(uninterrupted, tmp_path / "run")
    discard(output / lost)
    done = cli(*command(teacher, output)[3:])
    assert done.code == 0, done.stderr
    assert (output / lost).exists()
    assert same(weights(output), weights(uninterrupted))


def test_a_changed_digit_of_the_metrics_is_found_and_measured_again(teacher, uninterrupted, tmp_path):
    output = shutil.copytree(uninterrupted, tmp_path / "run")
    whole = read_json(output / "metrics.json")
    text = (output / "metrics.json").read_text()
    before = f'"value": {whole["metrics"]["params"]["value"]}'
    (output / "metrics.json").write_text(text.replace(before, f"{before[:-1]}{(int(before[-1]) + 1) % 10}", 1))
    done = cli(*command(teacher, output)[3:])
    assert done.code == 0, done.stderr
    assert "metrics.json is damaged: its checksum is not that of what it holds" in done.stderr
    assert read_json(output / "metrics.json")["metrics"]["params"] == whole["metrics"]["params"]


def test_the_books_that_a_run_goes_on_from_have_checksums(uninterrupted):
    books = ("run.json", ".run.json", "plan.json", "metrics.json", "bank/bank.json", "export-proof.json")
    for name in books:
        assert json.loads((uninterrupted / name).read_text())["checksum"].startswith("crc32 "), name


def _flip(file):
    content = bytearray(file.read_bytes())
    content[-5] ^= 64
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("unet/diffusion_pytorch_model.safetensors", _flip),
        ("unet/diffusion_pytorch_model.safetensors", Path.unlink),
        ("scheduler/scheduler_config.json", lambda file: file.write_bytes(b"")),
    ],
)
def test_a_pipeline_that_is_not_what_was_proved_is_not_finished(teacher, uninterrupted, tmp_path, change, name):
    output = shutil.copytree(uninterrupted, tmp_path / "run")
    change(output / "pipeline" / name)
    done = cli(*command(teacher, output)[3:])
    assert done.code == 0, done.stderr
    assert "is not what was proved any more" in done.stderr
    assert same(weights(output), weights(uninterrupted))
    kept = (uninterrupted / "pipeline" / name).read_bytes()
    assert (output / "pipeline" / name).read_bytes() == kept


def test_a_finished_run_of_another_teacher_is_refused(teacher, uninterrupted, tmp_path):
    changed = shutil.copytree(teacher, tmp_path / "teacher")
    output = shutil.copytree(uninterrupted, tmp_path / "run")
    assert cli(*command(changed, output)[3:]).code == 0
    save_teacher(changed, seed=1)
    refused = cli(*command(changed, output)[3:])
    assert refused.code == 2
    assert f"teacher was '{teacher}', now '{changed}'" in refused.stderr


def test_however_the_teacher_is_typed_it_is_the_same_run(teacher, uninterrupted, tmp_path, monkeypatch):
    """Unfinished and finished, with a recipe of a version that knew one key less."""
    output = shutil.copytree(uninterrupted, tmp_path / "run")
    monkeypatch.chdir(teacher.parent)
    before = stamps(output)
    for typed in (teacher.name, f"{teacher.name}/", f"./{teacher.name}"):
        done = cli(*command(typed, output)[3:])
        assert done.code == 0 and "is finished" in done.stderr, done.stderr
    assert before == stamps(output)
    marker = read_json(output / "run.json")
    del marker["version"], marker["recipe"]["training"]["precision"]
    write_json(output / "run.json", marker)
    discard(output / ".run.json")
    discard(output / "metrics.json")
    done = cli(*command(teacher.name, output)[3:])
    assert done.code == 0, done.stderr
    assert "was begun by diffcompress of an earlier version" in done.stderr


def test_a_second_process_on_the_same_folder_is_refused(teacher, tmp_path):
    import fcntl

    output = tmp_path / "run"
    output.mkdir()
    with (output / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused = run(command(teacher, output))
    assert refused.returncode == 2
    assert "another process" in refused.stderr
    assert not RunFolder(output).marker.file.exists()
