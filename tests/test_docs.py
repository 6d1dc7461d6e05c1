"""The pages on Python: their examples run, every public name is on them, and the site builds without a warning."""

from __future__ import annotations

import importlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import diffcompress
from diffcompress import errors, losses, noise, recipe

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "docs" / "api.md", ROOT / "docs" / "numerics.md"]
PUBLIC = [("diffcompress", name) for name in diffcompress.__all__]
PUBLIC += [(module.__name__, name) for module in (recipe, losses, noise) for name in module.__all__]
PUBLIC += [
    (errors.__name__, name)
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and kind.__module__ == errors.__name__
]


def examples(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_examples_of_a_page_run_from_top_to_bottom(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for example in examples(page):
        exec(compile(example, str(page), "exec"), names)
    assert names


@pytest.mark.parametrize(("module", "name"), PUBLIC)
def test_a_public_name_is_described_and_used(module, name):
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    told = re.findall(r"^::: (\S+)", text, flags=re.MULTILINE)
    told += [word for line in re.findall(r"members: \[(.*)\]", text) for word in line.split(", ")]
    value = getattr(importlib.import_module(module), name)
    assert not callable(value) or {name, module, f"{module}.{name}", f"{value.__module__}.{name}"} & set(told)
    used = "\n".join(example for page in PAGES for example in examples(page))
    assert re.search(rf"\bdiffcompress\.{name}\(" if module == "diffcompress" else rf"\b{name}\b", used)


def test_every_page_is_in_the_navigation_of_the_site():
    docs = ROOT / "docs"
    told = re.findall(r"^ +- (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert sorted(told) == sorted(page.relative_to(docs).as_posix() for page in docs.rglob("*.md"))


@pytest.mark.skipif(importlib.util.find_spec("mkdocstrings") is None, reason="the site's generator is in extra docs")
def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site" / "api" / "index.html").read_text(encoding="utf-8")
    assert "Compress <code>teacher</code> and return" in page
