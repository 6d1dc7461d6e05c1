"""Names inside a run folder stand in one module."""

from __future__ import annotations

import ast
from pathlib import Path

import diffcompress
from diffcompress.records import layout
from diffcompress.records.run_folder import RunFolder

PACKAGE = Path(diffcompress.__file__).parent
# They read the files of others: model cards have the name that ours have.
ELSEWHERE = ("sources", "images")
NAMES = {name for value in vars(layout).values() if isinstance(value, str) for name in [value] if "." in name[1:]}
NAMES |= {layout.STUDENT_INIT, layout.CHECKPOINTS}


def spelled(file: Path) -> set[str]:
    """The names of ours among the texts of a module, docstrings aside."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    told = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    texts = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in told)
    return NAMES & {str(node.value) for node in texts}


def test_no_other_module_spells_a_name() -> None:
    assert {"run.json", "state.safetensors", "diffcompress.json", "metrics.jsonl"} <= NAMES
    files = [file for file in PACKAGE.rglob("*.py") if file.relative_to(PACKAGE).parts[0] not in ELSEWHERE]
    found = {file.relative_to(PACKAGE).as_posix(): names for file in files if (names := spelled(file))}
    # The steps of a run, as timings.json has them; torch's own folder of downloads.
    assert found.pop("jobs/shrink.py") == {layout.STUDENT_INIT}
    assert found.pop("evaluation/features.py") == {layout.CHECKPOINTS}
    assert set(found) == {"records/layout.py"}


def test_names_are_made_and_found_alike(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for number in (0, 1, 10):
        run.stage(number, "my_stage").mkdir()
    assert run.stages() == [run.stage(number, "my_stage") for number in (0, 1, 10)]
    assert run.stage(1, "my_stage").name == "stage-2-my-stage"
    samples = [run.preview(step) for step in (20, 100, 5)]
    for file in samples:
        file.parent.mkdir(exist_ok=True)
        file.touch()
    assert [layout.step_of(file) for file in run.previews()] == ["000005", "000020", "000100"]
    stage = run.stage(0, "my_stage")
    for step in (3, 20):
        (stage / layout.CHECKPOINTS / layout.checkpoint(step)).mkdir(parents=True)
    assert [place.name for place in layout.checkpoints(stage)] == ["final", "step-000000020", "step-000000003"]
    inside = stage / layout.CHECKPOINTS / layout.checkpoint(3) / layout.STATE
    assert layout.whole_of(inside) == inside.parent
    assert layout.whole_of(run.metrics) == run.metrics
