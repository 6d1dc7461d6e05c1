"""What must be quick: --help and `import diffcompress`, neither of which may load torch."""

from __future__ import annotations

import importlib
import resource
import sys

import pytest

import diffcompress
from diffcompress import jobs
from tests.cli.command import spawn, spawn_fresh

HEAVY = "{'torch', 'diffusers', 'accelerate', 'numpy', 'click'}"


def cpu_seconds_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@pytest.mark.parametrize("arguments", [["--help"], ["shrink", "--help"], ["recipes", "list"]])
def test_help_and_recipes_load_nothing_heavy(arguments):
    code = (
        "import sys\n"
        "from diffcompress.cli.app import app\n"
        f"try: app({arguments!r})\n"
        "except SystemExit as stop: assert not stop.code\n"
        f"found = {HEAVY} & set(sys.modules)\n"
        "sys.exit(f'loaded {found}' if found else 0)"
    )
    done = spawn_fresh("-c", code)
    assert done.returncode == 0, done.stderr


def test_help_takes_less_than_half_a_second_of_cpu():
    taken = []
    for _ in range(3):
        before = cpu_seconds_of_children()
        assert spawn_fresh("-m", "diffcompress", "--help").returncode == 0
        taken.append(cpu_seconds_of_children() - before)
    assert min(taken) < 0.5, taken


def test_importing_the_package_loads_no_torch():
    code = f"import sys, diffcompress, diffcompress.jobs; sys.exit(', '.join({HEAVY} & set(sys.modules)) or 0)"
    done = spawn_fresh("-c", code)
    assert done.returncode == 0, done.stderr


def test_a_bad_option_is_refused_before_torch_is_loaded():
    code = (
        "import sys\n"
        "from diffcompress.cli.app import app\n"
        "try: app(['shrink', 'demo', '--ratio', '7'])\n"
        "except SystemExit as stop: assert stop.code == 2, stop.code\n"
        "sys.exit('loaded torch' if 'torch' in sys.modules else 0)"
    )
    done = spawn_fresh("-c", code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("own", "told"), [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")]
)
def test_threads_wait_as_the_environment_says_or_else_briefly(own, told):
    code = "from diffcompress.__main__ import prepare; import os; prepare(); print(os.environ.get('GOMP_SPINCOUNT'))"
    assert spawn("-c", code, **own).stdout.strip() == told


def test_the_jobs_keep_their_names_when_their_files_are_imported():
    importlib.import_module("diffcompress.jobs.plan")
    assert diffcompress.plan is jobs.plan is sys.modules["diffcompress.jobs.plan"].plan
    assert diffcompress.report is jobs.report is sys.modules["diffcompress.jobs.report"].report
    with pytest.raises(AttributeError, match="nothing"):
        _ = diffcompress.nothing
