"""Report and overview in a real browser: nothing breaks, nothing is fetched, and it fits where it is read."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from diffcompress.jobs.evaluate import evaluate
from diffcompress.records.run_files import read_json, write_json
from diffcompress.report.overview import write_overview
from diffcompress.report.page import write_report
from tests.report.browser import CHROMIUM, open_page
from tests.report.synthetic_run import write_run

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: no page was opened")

# The page in a frame: no window of the browser is as narrow as a phone. The framed page measures itself and tells.
FRAME = """<body><iframe src="measured.html" width="WIDTH" height="2000" style="border: 0"></iframe>
<script>addEventListener("message", (event) => { document.body.dataset.measured = event.data; });</script></body>"""
MEASURE = """<script>{
const seen = (selector) => [...document.querySelectorAll(selector)].map((one) => one.getBoundingClientRect());
const sheets = document.querySelector(".sheets"); let cut, over;
if (sheets) {
  document.querySelector("[data-mode=wipe]").click();
  const slider = document.querySelector(".controls input");
  slider.value = 30; slider.dispatchEvent(new Event("input"));
  cut = sheets.style.getPropertyValue("--cut");
  over = seen(".sheet.teacher")[0].left === seen(".sheet.student")[0].left;
}
const style = getComputedStyle(document.body);
parent.postMessage(JSON.stringify({
  width: innerWidth, scroll: document.documentElement.scrollWidth, cut, over, paper: style.backgroundColor,
  ink: style.color, label: getComputedStyle(document.querySelector("svg text")).fill,
  broken: [...document.images].filter((one) => !one.naturalWidth).length,
  flat: seen("svg").filter((box) => box.width < 50 || box.height < 30).length,
}), "*");
}</script></body>"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = write_run(tmp_path_factory.mktemp("browser") / "run")
    write_report(run)
    return run.report_html


@pytest.fixture(scope="module")
def overview(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `shrink --ratio 0.05,0.02` draws it."""
    folder = tmp_path_factory.mktemp("overview")
    runs = [write_run(folder / ratio) for ratio in ("0.05", "0.02")]
    found = read_json(runs[1].metrics)
    found["metrics"]["params"]["value"] = 25_000
    found["metrics"]["fd_demo"] |= {"value": 21.3, "low": 20.1, "high": 22.6}
    write_json(runs[1].metrics, found)
    for run in runs:
        write_report(run)
    evaluate([run.metrics for run in runs], output=folder, device="cpu")
    return write_overview(folder, runs)


def measured(page: Path, folder: Path, *, width: int = 1100, dark: bool = False) -> dict:
    (folder / "measured.html").write_text(
        page.read_text(encoding="utf-8").replace("</body>", MEASURE), encoding="utf-8"
    )
    (folder / "frame.html").write_text(FRAME.replace("WIDTH", str(width)), encoding="utf-8")
    dom = open_page(folder / "frame.html", folder, dark=dark).dom
    return json.loads(re.search(r'data-measured="(.*?)"', dom)[1].replace("&quot;", '"'))


def brightness(found: dict, *keys: str) -> list[int]:
    """Of paper and ink, or of `keys`, 0 to 765."""
    return [sum(map(int, re.findall(r"\d+", found[key])[:3])) for key in keys or ("paper", "ink")]


def test_no_console_errors_and_no_requests(page: Path, tmp_path: Path) -> None:
    opened = open_page(page, tmp_path)
    assert opened.console == []
    assert opened.requests == []
    assert '<div class="controls">' in opened.dom  # the script showed them


def test_the_overview_opens_alone_and_fits(overview: Path, tmp_path: Path) -> None:
    opened = open_page(overview, tmp_path)
    assert opened.console == []
    assert opened.requests == []
    assert opened.dom.count('/report.html"') == 2
    found = measured(overview, tmp_path, width=390)
    assert found["width"] == 390
    assert found["scroll"] <= 390
    assert found["flat"] == 0
    assert opened.dom.count('class="dot ') == 2  # the frontier, which no browser counts as an image
    paper, ink, label = brightness(measured(overview, tmp_path, dark=True), "paper", "ink", "label")
    assert ink > 600 > label > 300 > paper


def test_a_bad_page_would_be_noticed(page: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    text = page.read_text(encoding="utf-8")
    foreign = '<img src="http://127.0.0.1:9/pixel.png"><script>nothing.here()</script></body>'
    bad.write_text(text.replace("</body>", foreign), encoding="utf-8")
    opened = open_page(bad, tmp_path)
    assert any("nothing is not defined" in line for line in opened.console)
    assert any("127.0.0.1:9" in url for url in opened.requests)


def test_it_fits_a_phone_and_the_slider_cuts(page: Path, tmp_path: Path) -> None:
    found = measured(page, tmp_path, width=390)
    assert found["width"] == 390
    assert found["scroll"] <= 390
    assert found["cut"] == "30%"
    assert found["over"]
    assert found["broken"] == found["flat"] == 0
    paper, ink = brightness(found)
    assert paper > 600 > 300 > ink


def test_dark_is_dark(page: Path, tmp_path: Path) -> None:
    paper, ink = brightness(measured(page, tmp_path, dark=True))
    assert ink > 600 > 300 > paper


@pytest.mark.skipif(shutil.which("pdftotext") is None, reason="pdftotext is not installed: the print was not read")
def test_print_holds_recipe_and_no_buttons(page: Path, tmp_path: Path) -> None:
    pdf = tmp_path / "report.pdf"
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'p'}",
        f"--print-to-pdf={pdf}",
    ]
    subprocess.run([CHROMIUM, *flags, page.as_uri()], capture_output=True, timeout=120, check=True)
    text = subprocess.run(["pdftotext", str(pdf), "-"], capture_output=True, text=True, check=True).stdout
    assert "channels_per_group: 4" in text
    assert "How far to trust this" in text
    assert "Wipe teacher over student" not in text
