"""A tiny pipeline on disk: made once per file, copied for tests that change it."""

from __future__ import annotations

import shutil

import pytest

from tests import tiny


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return tiny.save_pipeline(tmp_path_factory.mktemp("teachers") / "ddpm")


@pytest.fixture
def pipeline(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "ddpm")
