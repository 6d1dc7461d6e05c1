"""What Windows has not, taken away here: fcntl, links, files that are replaced while they are open, UTF-8 consoles."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from diffcompress.sources import linking
from tests import tiny, warm
from tests.families.pipe_stable_diffusion import pipeline

_WITHOUT = """
import builtins, os, sys

real_import = builtins.__import__

def import_without(name, globals=None, *more, **named):
    ours = (globals or {{}}).get("__name__", "").startswith("diffcompress")
    if ours and name in ("fcntl", "resource", "pwd", "grp", "termios"):
        raise ImportError(f"No module named {{name!r}}")
    return real_import(name, globals, *more, **named)

builtins.__import__ = import_without

def refused(*_args, **_values):
    raise OSError(1314, "A required privilege is not held by the client")

os.symlink = os.link = refused
if {no_replace!r}:
    real = os.replace

    def replace(source, target):
        held = [name for name in os.listdir("/proc/self/fd") if _of(name) == os.path.abspath(target)]
        if held or any(os.path.abspath(target) in line for line in open("/proc/self/maps")):
            raise PermissionError(13, "The process cannot access the file because it is being used", str(target))
        return real(source, target)

    def _of(name):
        try:
            return os.readlink(f"/proc/self/fd/{{name}}")
        except OSError:
            return ""

    os.replace = replace
from diffcompress.__main__ import main
sys.argv[1:] = {arguments!a}
main()
"""


def _run(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[bytes]:
    code = _WITHOUT.format(arguments=arguments, no_replace=os.path.isdir("/proc/self/fd"))
    own = {"PYTHONIOENCODING": "cp1252", "HF_HUB_OFFLINE": "1"}
    command = [warm.interpreter(), "-c", code]
    return subprocess.run(command, cwd=folder, env=os.environ | own, capture_output=True, check=False)


def test_a_run_needs_no_fcntl_no_links_and_no_console_in_utf_8(tmp_path: Path) -> None:
    """A file that is open or mapped in this process is not replaced either, as Windows does not."""
    teacher = tiny.save_pipeline(tmp_path / "Lehrer \u2264 \u05d0", num_train_timesteps=50)
    sets = [text for value in tiny.SHORTEST for text in ("--set", value)]
    asked = ["shrink", str(teacher), "--ratio", "0.4", "--output", "run \u2264", "--device", "cpu", *sets]
    for _ in range(2):
        done = _run([*asked, "--json"], tmp_path)
        assert done.returncode == 0, done.stderr.decode("cp1252")
        assert b"Traceback" not in done.stderr
    told = json.loads(done.stdout.decode("cp1252"))
    assert told["run"] == "run \u2264" and (tmp_path / "run \u2264" / "report.html").is_file()
    (tmp_path / "run \u2264" / "metrics.json").unlink()  # read again, and written over what was read
    again = _run(asked, tmp_path)
    assert again.returncode == 0, again.stderr.decode("cp1252")


@pytest.mark.parametrize("command", [["--help"], ["shrink", "--help"], ["recipes", "show", "default"], ["env"]])
def test_what_is_printed_fits_into_a_console_of_one_byte(command: list[str], tmp_path: Path) -> None:
    done = _run(command, tmp_path)
    assert done.returncode == 0, done.stderr.decode("cp1252")
    assert done.stdout.decode("cp1252")


@pytest.mark.parametrize("borrow", [False, True])
def test_parts_are_copied_where_links_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, borrow: bool
) -> None:
    def refused(*_args: object, **_values: object) -> None:
        raise OSError(1314, "A required privilege is not held by the client")

    pipeline().save_pretrained(tmp_path / "teacher")
    for name in ("link", "symlink"):
        monkeypatch.setattr(os, name, refused)
    (tmp_path / "made").mkdir()
    linking.link_pipeline(tmp_path / "teacher", ["text_encoder", "vae"], tmp_path / "made", borrow=borrow)
    for file in ("text_encoder/model.safetensors", "vae/diffusion_pytorch_model.safetensors", "vae/config.json"):
        copied = tmp_path / "made" / file
        assert copied.read_bytes() == (tmp_path / "teacher" / file).read_bytes()
        assert copied.stat().st_nlink == 1 and not copied.is_symlink()
