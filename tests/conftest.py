"""Every test: one thread, no network, no colours, and no launcher's variables."""

from __future__ import annotations

import gc
import multiprocessing
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

from tests import typechecked, warm

# A worker holds half a million objects that all stay (see `pytest_collection_finish`): a tenth of its time went into
# looking for garbage among them.
gc.set_threshold(100_000, *gc.get_threshold()[1:])

# The same few examples everywhere; a slow machine is no failure.
settings.register_profile(
    "same", derandomize=True, max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("same")

# Shapes and types are checked at each call in these rooms; before anything imports them.
install_import_hook(
    ["diffcompress.losses", "diffcompress.noise", "diffcompress.training"], f"{typechecked.__name__}.checked"
)

# Before anything imports torch or huggingface_hub; subprocesses inherit them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
os.environ["NO_COLOR"] = "1"
for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "FORCE_COLOR"):
    os.environ.pop(name, None)


@pytest.hookimpl(wrapper=True)
def pytest_sessionstart(session: pytest.Session) -> Iterator[None]:
    """One server of warm processes for all workers; proofs of exports run there."""
    if not hasattr(session.config, "workerinput"):
        folder = tempfile.mkdtemp(prefix="warm-")
        os.environ[warm.SOCKET] = warm.place(folder)
        server = warm.start(folder, os.environ)

        def stop() -> None:
            server.kill()
            server.wait()
            shutil.rmtree(folder)

        session.config.add_cleanup(stop)
    multiprocessing.set_executable(warm.interpreter())
    return (yield)


# Files of minutes: two workers share them out first, so that neither is left with one in the end.
LONG = ("test_benchmarks.py", "test_resume.py", "test_families.py", "test_fuzz.py", "test_doctor.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()


# No test judges a time: what is a median of many timings elsewhere is one here.
TIMINGS = {
    "diffcompress.evaluation.speed": {"FEWEST_REPEATS": 1, "SECONDS": 0.0},
    "diffcompress.jobs.pace": {"LONG_SECONDS": 0.005, "REPEATS": 1},
}


@pytest.fixture(autouse=True)
def _quick() -> None:
    """Tests that need no torch do not pay for it."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    for module in TIMINGS.keys() & sys.modules:
        vars(sys.modules[module]).update(TIMINGS[module])
