"""The list of mutants fits the package, and who survives is told. `make mutants` applies them all."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from tests import mutants, warm

LIST = mutants.read()


@pytest.mark.parametrize("mutant", LIST, ids=lambda mutant: mutant.name)
def test_a_mutant_changes_one_place_and_its_tests_are_there(mutant: mutants.Mutant) -> None:
    text = (mutants.ROOT / "diffcompress" / mutant.file).read_text(encoding="utf-8")
    assert text.count(mutant.old) == 1, f"{mutant.file} was changed here: mend mutants.yaml"
    compile(text.replace(mutant.old, mutant.new), mutant.file, "exec")
    assert mutant.old != mutant.new
    assert mutant.tests
    for test in mutant.tests:
        file, _, function = test.partition("::")
        assert f"def {function}" in (mutants.ROOT / file).read_text(encoding="utf-8"), test


def test_every_room_with_numbers_has_mutants() -> None:
    assert len({mutant.name for mutant in LIST}) == len(LIST) >= 80
    rooms = {Path(mutant.file).parts[0] for mutant in LIST}
    assert {"losses", "noise", "pipeline", "training", "student", "evaluation", "bank"} <= rooms


def test_a_change_that_means_nothing_survives_and_the_checkout_stays_as_it_is(tmp_path: Path) -> None:
    (real, *_) = (mutant for mutant in LIST if mutant.file == "losses/variance_kd.py")
    harmless = replace(real, new=real.old, name="harmless")
    before = (mutants.ROOT / "diffcompress" / real.file).read_bytes()
    code = (
        "from tests.mutants import *\nimport tests.mutants as m\n"
        f"m.read = lambda: {[real, harmless]!r}\nsys.exit(main())"
    )
    done = subprocess.run(
        [warm.interpreter(), "-c", code], cwd=mutants.ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    assert "1 of 2 mutants noticed" in done.stdout
    assert "survived: harmless (losses/variance_kd.py)" in done.stdout
    assert (mutants.ROOT / "diffcompress" / real.file).read_bytes() == before
