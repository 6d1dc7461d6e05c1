"""Teachers and their banks, made once for all tests of the loop."""

from __future__ import annotations

import pytest

from diffcompress.pipeline.load import load
from diffcompress.runtime import start
from diffcompress.sources.resolve import resolve
from tests import tiny
from tests.jobs.tiny_teacher import save_teacher
from tests.training import tiny_job


@pytest.fixture(scope="package")
def runtime():
    return start("cpu")


@pytest.fixture(scope="package")
def world(tmp_path_factory, runtime):
    """A U-Net of about 30,000 parameters."""
    folder = tmp_path_factory.mktemp("world")
    return tiny_job.world(load(resolve(str(save_teacher(folder / "teacher")))), runtime, folder / "bank", 0.3)


@pytest.fixture(scope="package")
def dit_world(tmp_path_factory, runtime):
    """A class-conditional DiT with a null class and a learned variance."""
    folder = tmp_path_factory.mktemp("dit-world")
    return tiny_job.world(load(resolve(str(tiny.save_dit(folder / "teacher")))), runtime, folder / "bank", 0.315)
