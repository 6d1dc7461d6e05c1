"""Batches made ahead: each once, by a thread where the device is another than the CPU, whatever step comes next."""

from __future__ import annotations

import threading

import pytest
import torch

from diffcompress.bank.batch import Ahead

# Where nothing is computed, and values are lost: a step is told by the number of its rows.
ELSEWHERE = torch.device("meta")


class Maker:
    """Notes which step was made by which thread."""

    def __init__(self) -> None:
        self.made: list[tuple[int, bool]] = []
        self.done = threading.Event()

    def __call__(self, step: int) -> dict[str, torch.Tensor]:
        if step == 7:
            raise ValueError("the seventh")
        self.made.append((step, threading.current_thread() is threading.main_thread()))
        self.done.set()
        return {"x": torch.full((step + 1,), float(step))}


def test_the_next_step_is_made_by_another_thread_before_it_is_asked_for():
    make = Maker()
    ahead = Ahead(make, lambda step: step < 3, ELSEWHERE)
    assert ahead.take(0)["x"].shape == (1,)
    for step in (1, 2):
        assert make.done.wait(10)
        make.done.clear()
        assert ahead.take(step)["x"].shape == (step + 1,) and ahead.take(step)["x"].device == ELSEWHERE
    assert make.made[0] == (0, True)
    assert (1, False) in make.made and (2, False) in make.made
    ahead.take(3)
    assert make.made[-1] == (3, True)  # as it could not be made soon


def test_a_step_that_was_not_foreseen_is_made_all_the_same():
    make = Maker()
    ahead = Ahead(make, lambda step: True, ELSEWHERE)
    assert [ahead.take(step)["x"].shape[0] for step in (4, 2, 2, 3)] == [5, 3, 3, 4]


def test_what_goes_wrong_in_the_thread_is_raised_where_the_step_is_asked_for():
    ahead = Ahead(Maker(), lambda step: True, ELSEWHERE)
    ahead.take(6)
    with pytest.raises(ValueError, match="seventh"):
        ahead.take(7)


def test_no_thread_takes_the_cores_of_a_cpu():
    make = Maker()
    ahead = Ahead(make, lambda step: True, torch.device("cpu"))
    assert [ahead.take(step)["x"][0].item() for step in range(3)] == [0, 1, 2]
    assert make.made == [(0, True), (1, True), (2, True)]
