"""Output: results on stdout, progress on stderr, and how often."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field

import pytest

from diffcompress.cli import console
from diffcompress.cli.console import Output


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


@dataclass
class Heard(Output):
    """Keeps what it says."""

    stdout: io.StringIO = field(default_factory=io.StringIO)
    stderr: io.StringIO = field(default_factory=io.StringIO)


def output(**options) -> Heard:
    return Heard(**options)


def test_off_a_terminal_one_line_at_first_at_last_and_every_thirty_seconds(clock):
    out = output()
    for step in range(0, 101):
        clock[0] = 100.0 + step
        out.update("stage_lift", step, 100, loss=0.5, fine_weight=0.25)
    lines = out.stderr.getvalue().splitlines()
    assert [line.split()[2] for line in lines] == ["0/100,", "30/100,", "60/100,", "90/100,", "100/100,"]
    assert lines[1] == "stage lift 30/100, loss 0.5, fine weight 0.25, 1 steps/s, 1 min 10 s left"


def test_two_tasks_have_their_own_clocks_and_a_finished_one_may_come_again(clock):
    out = output()
    out.update("bank", 1, 3)
    out.update("samples", 1, 3)
    out.update("bank", 2, 3)
    out.update("bank", 3, 3)
    out.update("bank", 3, 3)
    out.update("bank", 1, 3)
    tasks = [line.split(",")[0] for line in out.stderr.getvalue().splitlines()]
    assert tasks == ["bank 1/3", "samples 1/3", "bank 3/3", "bank 1/3"]


def test_a_resumed_task_counts_its_speed_from_where_it_went_on(clock):
    out = output()
    out.update("bank", 90, 100)
    clock[0] += 40
    out.update("bank", 94, 100)
    assert "0.1/s, 1 min 0 s left" in out.stderr.getvalue()


def test_quiet_drops_progress_and_notes_but_no_warnings():
    out = output(quiet=True)
    out.note("hello")
    out.update("bank", 1, 2)
    out.warn("careful")
    out.error("broken", "mend it")
    assert out.stderr.getvalue() == "warning: careful\nerror: broken\nhint: mend it\n"


def test_json_is_one_object_and_says_null_for_what_json_cannot_say():
    out = output(as_json=True)
    out.result({"a": float("nan"), "b": [float("inf"), 1.5], "c": (True, None)}, "never shown")
    assert json.loads(out.stdout.getvalue()) == {"a": None, "b": [None, 1.5], "c": [True, None]}


def test_a_long_human_line_is_not_folded_off_a_terminal():
    out = output()
    out.result({}, "word " * 100)
    assert len(out.stdout.getvalue().splitlines()) == 1


def test_markup_in_texts_is_shown_as_it_is():
    out = output(stderr=Terminal())
    out.warn("[24, 48] -> [red]")
    out.result({}, "[bold]x[/bold]")
    assert "[24, 48] -> [red]" in out.stderr.getvalue()
    assert out.stdout.getvalue() == "[bold]x[/bold]\n"


def test_live_display_on_a_terminal_without_colours(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    out = output(stderr=Terminal())
    for step in range(3):
        out.update("stage_place", step + 1, 3, loss=0.25, slope=0.9)
    out.close()
    shown = out.stderr.getvalue()
    assert "stage place" in shown
    assert "loss 0.25" in shown
    assert "slope 0.9" in shown
    assert "\x1b[3" not in shown  # no colour
