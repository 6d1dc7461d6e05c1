"""Several ratios at once: one bank, a run folder for each, one page for all."""

import pytest

import diffcompress.jobs.several as several
from diffcompress.errors import UsageError
from diffcompress.run_folder import read_json
from tests.jobs.tiny_teacher import SMALL, save_teacher


def overrides() -> tuple[str, ...]:
    return tuple(f"{key}={value}" for key, value in SMALL.items())


def test_two_students_share_a_bank_and_a_page(tmp_path):
    teacher, folder = str(save_teacher(tmp_path / "teacher")), tmp_path / "out"
    results = several.shrink_several(teacher, [0.5, 0.3], output=str(folder), overrides=overrides())
    assert [result["student"]["requested_ratio"] for result in results] == [0.5, 0.3]
    assert (folder / "bank").is_dir() and not (folder / "0.5" / "bank").exists()
    assert (folder / "0.3" / "pipeline" / "model_index.json").is_file()
    assert len(read_json(folder / "comparison.json")) == 2
    page = (folder / "overview.html").read_text()
    assert 'href="0.5/report.html"' in page and 'href="0.3/report.html"' in page and "<svg" in page
    # The second student met the very bank of the first, and its own run does not differ from a run alone.
    alone = several.shrink(teacher, ratio=0.3, output=str(tmp_path / "alone"), overrides=overrides())
    ours, theirs = (
        read_json(place / "metrics.json")["student"]["fingerprint"] for place in (folder / "0.3", tmp_path / "alone")
    )
    assert ours == theirs and alone["student"] == results[1]["student"]


@pytest.mark.parametrize(
    ("ratios", "push", "words"), [([0.5, 0.5], None, "twice"), ([0.5, 0.3], "me/it", "several ratios")]
)
def test_what_several_students_cannot_be(tmp_path, ratios, push, words):
    teacher = str(save_teacher(tmp_path / "teacher"))
    with pytest.raises(UsageError, match=words):
        several.shrink_several(teacher, ratios, output=str(tmp_path / "out"), push_to_hub=push)
    assert not (tmp_path / "out").exists()
