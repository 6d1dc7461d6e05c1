"""Several ratios at once: one bank, a run folder for each, one page for all."""

from pathlib import Path

import jsonschema
import pytest

import diffcompress
from diffcompress.errors import UsageError
from diffcompress.jobs.several import shrink_several
from diffcompress.records.record import plain
from diffcompress.records.request import ShrinkOptions
from diffcompress.records.run_files import read_json
from diffcompress.runtime import Progress
from tests.jobs.tiny_teacher import SMALL, save_teacher
from tests.telling import Told

SCHEMA = read_json(Path(__file__).parents[2] / "docs" / "schemas" / "shrink.schema.json")


def overrides() -> tuple[str, ...]:
    # Some targets by teacher calls of their own: trajectories alone would leave the target store empty.
    return tuple(f"{key}={value}" for key, value in (SMALL | {"targets.trajectory_share": 0.5}).items())


def test_two_students_share_a_bank_and_a_page(tmp_path):
    teacher, folder = str(save_teacher(tmp_path / "teacher")), tmp_path / "out"
    pools = {}

    class Watching(Progress):
        def note(self, text):
            pools[text] = {path: path.stat().st_mtime_ns for path in (folder / "targets").rglob("*.safetensors")}

    asked = (*overrides(), "evaluation.interval=0.1")
    each = [ShrinkOptions(teacher, ratio=ratio, output=folder, overrides=asked) for ratio in (0.5, 0.3)]
    results = plain(shrink_several(each, Watching()))
    jsonschema.Draft202012Validator(SCHEMA).validate(results)
    # The first student filled the target store, the second found it full and touched nothing of it.
    made = pools["student of ratio 0.3"]
    assert made and made == {path: path.stat().st_mtime_ns for path in (folder / "targets").rglob("*.safetensors")}
    assert not pools["student of ratio 0.5"] and not (folder / "0.3" / "targets").exists()
    assert [result["student"]["requested_ratio"] for result in results] == [0.5, 0.3]
    assert (folder / "bank").is_dir() and not (folder / "0.5" / "bank").exists()
    assert (folder / "0.3" / "pipeline" / "model_index.json").is_file()
    assert len(read_json(folder / "comparison.json")) == 2
    page = (folder / "overview.html").read_text()
    assert 'href="0.5/report.html"' in page and 'href="0.3/report.html"' in page and "<svg" in page
    # The second student met the very bank of the first, and its own run does not differ from a run alone.
    told = Told()
    alone = diffcompress.shrink(teacher, ratio=0.3, output=str(tmp_path / "alone"), overrides=asked, progress=told)
    counted = "samples are drawn, whatever evaluation.interval is: "
    assert f"4 {counted}students that are made together are compared" in pools
    assert f"4 {counted}there are no feature weights to measure one with" in told.notes
    ours, theirs = (
        read_json(place / "metrics.json")["student"]["fingerprint"] for place in (folder / "0.3", tmp_path / "alone")
    )
    assert ours == theirs and alone["student"] == results[1]["student"]


@pytest.mark.parametrize(
    ("ratios", "push", "words"), [([0.5, 0.5], None, "twice"), ([0.5, 0.3], "me/it", "several ratios")]
)
def test_what_several_students_cannot_be(tmp_path, ratios, push, words):
    teacher = str(save_teacher(tmp_path / "teacher"))
    asked = {"output": tmp_path / "out", "push_to_hub": push}
    each = [ShrinkOptions(teacher, ratio=ratio, **asked) for ratio in ratios]
    with pytest.raises(UsageError, match=words):
        shrink_several(each, Progress())
    assert not (tmp_path / "out").exists()


def test_one_call_from_python_makes_one_student():
    with pytest.raises(UsageError, match=r"the ratios are 0\.1, 0\.05") as caught:
        diffcompress.shrink("demo", ratio=[0.1, 0.05])
    assert "once for each" in caught.value.hint
