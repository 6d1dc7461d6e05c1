"""The run folder: all-or-nothing writes, the lock, and what is refused."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from diffcompress import recipe as recipes
from diffcompress.errors import DamagedError, RunStopped, UsageError
from diffcompress.records.run_files import write_atomically, write_json, write_stamped
from diffcompress.records.run_folder import RunFolder, read_recipe

IDENTITY = {"teacher": "demo", "ratio": 0.05}


def _fails_half_way(error: BaseException):
    def write(part):
        part.write_text("half")
        raise error

    return write


@pytest.mark.parametrize("error", [ValueError("bug"), KeyboardInterrupt(), PermissionError(errno.EACCES, "denied")])
def test_a_failed_write_leaves_what_was_there(tmp_path, error):
    path = tmp_path / "metrics.json"
    write_json(path, {"a": 1})
    with pytest.raises(type(error)):
        write_atomically(path, _fails_half_way(error))
    assert json.loads(path.read_text()) == {"a": 1}
    assert os.listdir(tmp_path) == ["metrics.json"]


def test_a_full_disk_stops_the_run_resumably(tmp_path):
    with pytest.raises(RunStopped, match="no space left") as caught:
        write_atomically(tmp_path / "x", _fails_half_way(OSError(errno.ENOSPC, "No space left on device")))
    assert caught.value.exit_status == 75
    assert os.listdir(tmp_path) == []


def test_a_file_never_takes_the_place_of_a_folder(tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "kept").touch()
    with pytest.raises(DamagedError, match="where a file belongs"):
        write_json(tmp_path / "results", {"a": 1})
    assert os.listdir(tmp_path) == ["results"] and os.listdir(tmp_path / "results") == ["kept"]


def test_tensors_are_as_readable_as_any_other_file(tmp_path):
    """safetensors alone would make them for the owner only; what a link points to is not ours."""
    theirs = tmp_path / "theirs.safetensors"
    save_file({"a": torch.zeros(1)}, theirs)
    theirs.chmod(0o600)

    def write(part):
        part.mkdir()
        save_file({"a": torch.zeros(1)}, part / "own.safetensors")
        (part / "soft.safetensors").symlink_to(theirs)
        (part / "hard.safetensors").hardlink_to(theirs)

    write_atomically(tmp_path / "pipeline", write)
    write_atomically(tmp_path / "one.safetensors", lambda part: save_file({"a": torch.zeros(1)}, part))
    write_json(tmp_path / "plain.json", {})
    plain = (tmp_path / "plain.json").stat().st_mode
    assert (tmp_path / "pipeline" / "own.safetensors").stat().st_mode == plain
    assert (tmp_path / "one.safetensors").stat().st_mode == plain
    assert theirs.stat().st_mode & 0o777 == 0o600


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    def fill(*names):
        def write(part):
            part.mkdir()
            for name in names:
                (part / name).write_text(name)

        return write

    write_atomically(tmp_path / "pipeline", fill("a", "b"))
    write_atomically(tmp_path / "pipeline", fill("c"))
    assert os.listdir(tmp_path / "pipeline") == ["c"]
    assert os.listdir(tmp_path) == ["pipeline"]


def test_claiming_makes_the_folder_and_the_same_run_may_claim_again(tmp_path):
    run = RunFolder(tmp_path / "deep" / "run")
    with run.claim(IDENTITY):
        write_json(run.metrics, {})
    with run.claim(IDENTITY):
        assert run.metrics.exists()
    assert run.identity == IDENTITY


def test_another_run_in_the_folder_is_refused_and_told_apart(tmp_path):
    run = RunFolder(tmp_path / "run")
    with run.claim(IDENTITY):
        write_json(run.metrics, {})
    other = {**IDENTITY, "ratio": 0.1}
    with pytest.raises(UsageError, match=r"ratio was 0\.05, now 0\.1") as caught, run.claim(other):
        pass
    assert run.metrics.exists()
    assert caught.value.hint.startswith("choose another --output to keep both")
    with run.claim({**IDENTITY, "ratio": 0.1}, overwrite=True):
        assert not run.metrics.exists()


def test_a_foreign_folder_is_refused_untouched(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="not empty and not this run") as caught, RunFolder(tmp_path).claim(IDENTITY):
        pass
    assert "--overwrite" in caught.value.hint
    assert os.listdir(tmp_path) == ["thesis.txt"]


def _flipped(file):
    file.write_text(file.read_text().replace("0.05", "0.04"))


def _replaced(make, file):
    file.unlink()
    make(file)


DAMAGES: dict[str, Callable[[Path], object]] = {
    **{content: partial(Path.write_text, data=content) for content in ("", "[1]", "{", "{}", "\0", "[" * 9999)},
    "flipped": _flipped,
    "a folder": partial(_replaced, Path.mkdir),
    "a pipe": partial(_replaced, os.mkfifo),
    "a loop": partial(_replaced, lambda file: file.symlink_to(file)),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=[repr(name)[:9] for name in DAMAGES])
def test_a_damaged_marker_is_written_again_from_its_copy(tmp_path, damage):
    run = RunFolder(tmp_path / "run")
    told: list[str] = []
    with run.claim(IDENTITY):
        write_json(run.metrics, {})
    for file in (run.marker.file, run.marker.copy):
        damage(file)
        assert run.identity == IDENTITY
        with run.claim(IDENTITY, warn=told.append):
            assert run.metrics.exists()
        assert run.marker.is_whole and json.loads(run.marker.copy.read_text())["ratio"] == 0.05
    (one,) = told
    assert re.match(rf"{run.marker.file} is damaged: \S*[^: ]", one) and one.endswith("is taken from its copy again")


def test_a_missing_marker_is_written_again_from_its_copy(tmp_path):
    run = RunFolder(tmp_path / "run")
    told: list[str] = []
    with run.claim(IDENTITY):
        write_json(run.metrics, {})
    run.marker.file.unlink()
    with pytest.raises(UsageError, match=r"ratio was 0\.05, now 0\.1"), run.claim({**IDENTITY, "ratio": 0.1}):
        pass
    assert not run.marker.file.exists()
    with run.claim(IDENTITY, warn=told.append):
        assert run.metrics.exists()
    assert told == [f"{run.marker.file} is missing and was written again from its copy"] and run.marker.is_whole


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=[repr(name)[:9] for name in DAMAGES])
def test_a_run_that_cannot_be_told_any_more_is_kept(tmp_path, damage):
    run = RunFolder(tmp_path / "run")
    with run.claim(IDENTITY):
        write_json(run.metrics, {})
    for file in (run.marker.file, run.marker.copy):
        damage(file)
    with pytest.raises(DamagedError, match=r"run\.json is damaged: ") as caught, run.claim(IDENTITY):
        pass
    assert caught.value.exit_status == 1 and "another --output" in caught.value.hint
    with pytest.raises(DamagedError, match=r"run\.json is damaged: "):
        _ = run.identity
    assert run.metrics.exists()
    with run.claim(IDENTITY, overwrite=True):
        assert not run.metrics.exists() and run.identity == IDENTITY


def test_a_run_that_was_stopped_before_its_marker_stood_is_no_stranger(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    (run.path / "run.json.part").write_text("{")
    with run.claim(IDENTITY):
        assert run.identity == IDENTITY
    assert not (run.path / "run.json.part").exists()


def test_a_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "run").write_text("x")
    assert not RunFolder(tmp_path / "run").is_finished
    with pytest.raises(UsageError, match="is a file"), RunFolder(tmp_path / "run").claim(IDENTITY):
        pass


def test_an_unwritable_place():
    # Not even root may make folders in /proc.
    with pytest.raises(UsageError, match="cannot write"), RunFolder("/proc/diffcompress-run").claim(IDENTITY):
        pass


def test_a_place_where_no_folder_can_be(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="cannot write"), RunFolder(tmp_path / "file" / "run").claim(IDENTITY):
        pass


def _refused_in(run, *made):
    def work():
        for file in (run.plan, *made):
            write_json(file, {})
        raise UsageError("no image")

    with pytest.raises(UsageError, match="no image"), run.claim(IDENTITY):
        work()


def test_a_new_run_that_is_refused_leaves_nothing_behind(tmp_path):
    run = RunFolder(tmp_path / "run")
    _refused_in(run)
    assert os.listdir(tmp_path) == []
    with run.claim(IDENTITY):
        pass
    _refused_in(run)
    assert run.marker.is_whole and run.plan.exists()


@pytest.mark.parametrize("made", ["bank/shard-00000.safetensors", "stage-1-lift/checkpoints/step-000000000"])
def test_what_took_time_is_kept_when_a_run_is_refused(tmp_path, made):
    _refused_in(RunFolder(tmp_path / "run"), tmp_path / "run" / made)
    assert (tmp_path / "run" / made).exists()


def test_a_second_process_is_locked_out_until_the_first_ends(tmp_path):
    code = (
        "import sys\n"
        "from diffcompress.records.run_folder import RunFolder\n"
        f"with RunFolder({str(tmp_path / 'run')!r}).claim({IDENTITY!r}):\n"
        "    print('held', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        for overwrite in (False, True):
            with pytest.raises(UsageError, match=rf"another process is working on .* \(process {holder.pid} on "):
                with RunFolder(tmp_path / "run").claim(IDENTITY, overwrite=overwrite):
                    pass
    finally:
        holder.kill()
        holder.communicate()
    with RunFolder(tmp_path / "run").claim(IDENTITY):
        pass
    assert sorted(os.listdir(tmp_path / "run")) == [".lock", ".run.json", "run.json"]


def test_what_is_no_run_folder(tmp_path):
    with pytest.raises(UsageError, match="is not a run folder"):
        _ = RunFolder(tmp_path).identity


@pytest.mark.parametrize("stamped", [True, False])
def test_a_recipe_that_was_cut_is_never_one_of_defaults(tmp_path, stamped):
    folder = RunFolder(tmp_path)
    recipe = recipes.load("demo")
    folder.recipe.write_text(recipe.to_yaml())  # as earlier versions did
    assert read_recipe(folder.recipe) == recipe
    if stamped:
        write_stamped(folder.recipe, recipe.to_yaml())
        assert read_recipe(folder.recipe) == recipe
    whole = folder.recipe.read_text()
    lines = whole[: whole.index("export:")].splitlines(keepends=True)
    for count in range(len(lines) + 1):
        folder.recipe.write_text("".join(lines[:count]))
        with pytest.raises(DamagedError, match=r"recipe\.yaml"):
            read_recipe(folder.recipe)
