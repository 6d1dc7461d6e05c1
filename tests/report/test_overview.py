"""Several students on one page: one figure for all, beside their teacher's."""

from __future__ import annotations

import re
from pathlib import Path

from diffcompress.records.run_files import read_json, write_json
from diffcompress.report.overview import write_overview
from diffcompress.report.page import write_report
from tests.report.synthetic_run import write_run


def rows(page: str) -> list[list[str]]:
    """The words of every cell."""
    found = re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL)
    cells = [re.findall(r"<t[hd]>(.*?)</t[hd]>", row, re.DOTALL) for row in found]
    return [[" ".join(re.sub("<[^>]*>", " ", cell).split()) for cell in row] for row in cells]


def test_a_broken_student_shows_no_other_figure_in_place_of_the_distance(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / ratio) for ratio in ("0.02", "0.05")]
    found = read_json(runs[0].metrics)
    del found["metrics"]["fd_demo"], found["metrics"]["fd_demo_corrected"]  # its samples are not finite
    write_json(runs[0].metrics, found)
    for run in runs:
        write_report(run)
    page = write_overview(tmp_path, runs).read_text(encoding="utf-8")
    head, teacher, broken, whole = rows(page)
    assert head[3:6] == [
        "Fréchet distance (fd_demo) lower is better",
        "Agreement with the teacher higher is better",
        "Failed samples lower is better",
    ]
    assert teacher[0] == "teacher" and teacher[3:6] == ["2.04 [1.90, 2.20]", "–", "0.100 % [0.0300 %, 0.300 %]"]
    assert broken[3] == "–" and broken[4].startswith("0.936")
    assert whole[3] == "9.31 [8.87, 9.76]"
    assert "2,048 samples, seed 7, DDIM 25 steps, 95 % intervals" in page
