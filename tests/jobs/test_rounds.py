"""A run that nobody gave a time trains in rounds, while twice the steps lower its held-out error enough."""

from __future__ import annotations

import shutil
import signal

import pytest
import torch

from diffcompress import recipe as recipes
from diffcompress.bank.keeping import Kept
from diffcompress.jobs import rounds
from diffcompress.jobs.forecast import AROUND_SECONDS, Work, expected, in_rounds
from diffcompress.jobs.pace import Pace
from diffcompress.jobs.plan import plan
from diffcompress.records.protocol import Protocol
from diffcompress.records.rounds import MOST_ROUNDS, Round, Rounds, pays
from diffcompress.records.run_files import read_json, read_tensors
from diffcompress.records.run_folder import RunFolder
from diffcompress.training import budget
from tests.jobs.tiny_teacher import command, run, same, save_teacher, settings, stop_when, weights

# Of the recipe's 30 steps a second round takes less away than that.
ASKED = {"stages__1__least_gain": 0.9}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return save_teacher(tmp_path_factory.mktemp("teacher") / "teacher")


@pytest.fixture(scope="module")
def finished(teacher, tmp_path_factory):
    output = tmp_path_factory.mktemp("finished") / "run"
    done = run(command(teacher, output, **ASKED))
    assert done.returncode == 0, done.stderr
    return output, done.stderr


def test_a_run_trains_on_until_twice_the_steps_gain_little(finished):
    output, told = finished
    found = read_json(output / "rounds.json")
    first, second = found["rounds"]
    assert (first["steps"], second["steps"]) == (30, 60)
    assert 0 < second["error"] < first["error"] < 10 * second["error"]
    assert 0 < first["seconds"] < second["seconds"]
    assert recipes.parse((output / "recipe.yaml").read_text(), "").num_steps == 60
    assert read_json(output / "stage-2-place" / "final" / "state.json")["step"] == 60
    assert found["ended"].startswith("training ended after 60 steps: the last half of them lowered the held-out error")
    assert "less than 90 %; one more hour, " in found["ended"] and "(--max-time 61m)" in found["ended"]
    assert found["ended"] in told
    assert read_json(output / "report.json")["rounds"] == found
    page = (output / "report.html").read_text(encoding="utf-8")
    assert "held-out error</th>" in page and "One more hour" not in page and "one more hour" in page
    held_out = [read_tensors(part)["clean"] for part in sorted((output / "held-out").iterdir())]
    clean, bank = torch.cat(held_out), read_tensors(output / "bank" / "shard-00000.safetensors")
    assert len(clean) == rounds.NUM_IMAGES
    drawn = next(value for value in bank.values() if value.shape[1:] == clean.shape[1:]).float()
    assert not any(torch.equal(one, other) for one in clean for other in drawn)


def test_a_run_killed_in_its_second_round_ends_as_one_that_was_not(teacher, finished, tmp_path):
    output = tmp_path / "run"
    log = output / "stage-2-place" / "metrics.jsonl"
    arguments = command(teacher, output, **ASKED)
    killed = stop_when(arguments, lambda: log.exists() and len(log.read_text().splitlines()) > 22)
    assert killed.returncode == -signal.SIGKILL
    assert [one["steps"] for one in read_json(output / "rounds.json")["rounds"]] == [30]
    done = run(arguments)
    assert done.returncode == 0, done.stderr
    assert same(weights(output), weights(finished[0]))
    errors = [[one["error"] for one in read_json(each / "rounds.json")["rounds"]] for each in (output, finished[0])]
    assert errors[0] == errors[1]


@pytest.mark.parametrize("begun", [False, True])
def test_a_time_takes_the_place_of_rounds(teacher, finished, tmp_path, begun):
    """Of a run that ended by itself, too: what it said of its end holds no more."""
    output, seconds = tmp_path / "run", 3.0
    if begun:
        shutil.copytree(finished[0], output)
        seconds += RunFolder(output).granted  # on a busy machine more than three seconds
    done = run(command(teacher, output, "--max-time", f"{seconds:.1f}s", **ASKED))
    assert done.returncode == 0, done.stderr
    assert not (output / "rounds.json").exists()
    assert read_json(output / "report.json")["rounds"] is None
    assert recipes.parse((output / "recipe.yaml").read_text(), "").num_steps > 60


def test_who_says_how_many_steps_gets_as_many():
    for name in ("default", "dit", "mmdit", "latent-unet"):
        assert recipes.load(name).stages[-1].least_gain == 0.04
        assert recipes.load(name, ("stages.1.num_steps=500",)).stages[-1].least_gain is None
        both = recipes.load(name, ("stages.1.num_steps=500", "stages.1.least_gain=0.1"))
        assert (both.stages[-1].num_steps, both.stages[-1].least_gain) == (500, 0.1)
        assert recipes.load(name, method="output-kd").stages[-1].least_gain == 0.04
    for name in ("demo", "demo-dit", "demo-mmdit", "published"):
        assert recipes.load(name).stages[-1].least_gain is None


def test_all_rounds_are_made_while_they_pay():
    recipe = recipes.load("default")
    assert budget.doubled(recipe).num_steps == 2 * recipe.num_steps
    assert budget.doubled(recipe, MOST_ROUNDS - 1).num_steps == 128_000
    assert budget.doubled(recipe, 3).stages[0] == recipe.stages[0]


def test_what_one_more_hour_would_bring_follows_from_the_last_round():
    """The error falls by a power of the steps: another doubling, as it happens to be, takes as much away again."""
    found = Rounds(rounds=[Round(steps=1000, seconds=1800, error=0.4), Round(steps=2000, seconds=3600, error=0.3)])
    assert found.gain == pytest.approx(0.25)
    steps, gain = found.after(3600)
    assert (steps, gain) == (2000, pytest.approx(0.25))
    assert found.end(0.2) is None
    assert found.end(0.3) == (
        "training ended after 2,000 steps: the last half of them lowered the held-out error by 25 %, less than 30 %; "
        "one more hour, 2,000 steps, would lower that error by about 25 % (--max-time 120m)"
    )
    worse = Rounds(rounds=[found.rounds[0], found.rounds[1].model_copy(update={"error": 0.5})])
    assert "did not lower the held-out error, less than 5 %; " in worse.end(0.05) and "about 0 %" in worse.end(0.05)
    many = Rounds(rounds=[Round(steps=2**n, seconds=2**n, error=0.8**n) for n in range(7)])
    assert "ended after 64 steps: more are not made by themselves; " in many.end(0.05)
    assert Rounds(rounds=many.rounds[:-1]).end(0.05) is None


def test_what_takes_many_hours_ends_where_one_more_is_worth_little():
    first = Rounds(rounds=[Round(steps=2000, seconds=40_000, error=0.4)])
    assert first.gain is None and first.end(0.05) is None
    long = Rounds(rounds=[Round(steps=2000, seconds=60_000, error=0.4)])
    assert long.end(0.05) == (
        "training ended after 2,000 steps: an hour more is worth less than 1 % of the held-out error; one more hour, "
        "120 steps, would lower that error by about 0.88 % at a guess (--max-time 1060m)"
    )
    assert [pays(seconds) for seconds in (1, 3600, 50_000, 60_000)] == [True, True, True, False]


def test_a_plan_tells_the_shortest_and_the_longest(teacher):
    """Two rounds at least; at most six more, as long as steps are taken to be worth their hours."""
    protocol = Protocol(feature_space=None, sampler="ddim", sampler_steps=2, num_samples=4, seed=0, agreement_images=1)
    recipe = recipes.load("default", ("bank.num_samples=4", "student.start=random"))

    def of(pace):
        return in_rounds(recipe, lambda each: told(each, pace))

    def told(each, pace):
        work = Work.of(each, 0.05, (1, 8, 8), 1, Kept.in_memory((1, 8, 8), each.bank))
        return expected(work, each, protocol, Pace("a card", False, teacher=0.0, student=0.0, step=pace), drawn=True)

    steps = recipe.num_steps
    fast, slow, slowest = (of(pace) for pace in (0.1, 20.0, 1000.0))
    assert (fast.training, fast.most) == (2 * steps * 0.1, 64 * steps * 0.1 + AROUND_SECONDS)
    assert (slow.training, slow.most) == (2 * steps * 20, None)
    assert (slowest.training, slowest.most) == (steps * 1000, None)

    fixed = plan(str(teacher), ratio=0.3, overrides=tuple(one.removeprefix("--set=") for one in settings()))
    assert fixed["expected"].get("most") is None
