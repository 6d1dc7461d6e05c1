"""What ships: recipes, embedded teacher and templates, found from a checkout and from an unpacked wheel alike."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import diffcompress
from diffcompress.recipe import builtin_folder
from tests.cli.command import spawn

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("hatchling (extra dev) builds the wheel")
    folder = tmp_path_factory.mktemp("wheel")
    options = [
        "--no-deps",
        "--no-build-isolation",
        "--disable-pip-version-check",
        "--quiet",
        "--wheel-dir",
        str(folder),
    ]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(ROOT)], check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def test_a_checkout_keeps_the_recipes_beside_the_package():
    assert builtin_folder() == ROOT / "recipes"


def test_the_wheel_holds_everything_that_is_read_at_run_time(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    package = Path(diffcompress.__file__).parent
    beside_code = {f"diffcompress/{p.relative_to(package)}" for p in package.rglob("*") if p.is_file()}
    expected = {name for name in beside_code if "__pycache__" not in name}
    assert any(name.endswith(".safetensors") for name in expected)
    assert any(name.endswith(".j2") for name in expected)
    recipes = {f"diffcompress/recipes/{p.name}" for p in (ROOT / "recipes").glob("*.yaml")}
    assert expected | recipes <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not any(name.startswith(("tests", "benchmarks")) for name in names)


def test_an_unpacked_wheel_works_on_its_own(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = (
        "import json, sys, pathlib, diffcompress\n"
        "from diffcompress.recipe import builtin_folder, builtin_names\n"
        "from diffcompress.sources.reference import demo_names\n"
        "print(json.dumps([diffcompress.__file__, str(builtin_folder()), builtin_names(), demo_names()]))\n"
    )
    done = spawn("-c", code, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    file, folder, names, demos = json.loads(done.stdout)
    assert Path(file).is_relative_to(tmp_path)
    assert Path(folder) == tmp_path / "diffcompress" / "recipes"
    assert {"default", "published"} <= set(names)
    assert "unet" in demos
    shown = spawn("-m", "diffcompress", "recipes", "show", "published", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert shown.stdout.startswith("description: ")
