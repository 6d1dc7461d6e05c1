"""How long a run takes, told before: what is counted is what a run then asks for; what is told adds up."""

import json
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from diffcompress import recipe as recipes
from diffcompress.bank import bank as banks
from diffcompress.bank.drawing import calls_per_step
from diffcompress.bank.keeping import Kept
from diffcompress.bank.targets import Targets, distinct, may_grow
from diffcompress.jobs.cards import CARDS
from diffcompress.jobs.forecast import Work, expected
from diffcompress.jobs.outlook import Outlook
from diffcompress.jobs.pace import Pace
from diffcompress.jobs.plan import plan
from diffcompress.jobs.stand_in import stand_in
from diffcompress.pipeline.load import describe, load
from diffcompress.recipe import BankSection
from diffcompress.records.protocol import Protocol
from diffcompress.runtime import Progress, start
from diffcompress.sources.resolve import resolve
from tests.cli.command import run
from tests.families import pipe_dit
from tests.jobs.tiny_teacher import command, save_teacher, settings
from tests.jobs.tiny_teacher import run as run_process

CONFIGS = Path(__file__).parents[1] / "teachers"
Disk = namedtuple("Disk", ["free"])
PARTS = ("bank", "start", "targets", "training", "evaluation", "around")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_teacher(tmp_path_factory.mktemp("teacher") / "teacher")


def recipe_of(**changes):
    values = [option.removeprefix("--set=") for option in settings(**changes)]
    return recipes.load("default", tuple(values))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"targets__trajectory_share": 0.5},
        {"targets__reuse": 1},
        {"bank__grow": False, "stages__1__num_steps": 180},
        {"stages__1__num_steps": 180},  # 768 predictions for 480 stored calls: the bank grows
    ],
)
def test_calls_are_counted_as_a_run_makes_them(folder, tmp_path, changes):
    teacher, recipe, runtime = load(resolve(str(folder))), recipe_of(**changes), start("cpu")
    asked = []
    counting = teacher.denoiser.register_forward_hook(lambda module, given, output: asked.append(len(given[0])))
    section, wanted = recipe.bank, distinct(recipe.targets, recipe.num_steps * recipe.training.batch_size)
    bank = banks.fill(tmp_path / "bank", teacher, section, 0, None, runtime, Progress())
    if may_grow(recipe.targets):
        bank = banks.grown(bank, tmp_path / "bank", wanted, 0.02, teacher, section, 0, runtime, Progress())
    sampled = sum(asked) - 3  # two calls find the batch that memory holds
    work = Work.of(recipe, 0.02, teacher.sample_shape, calls_per_step(teacher, section), bank.kept)
    assert sampled == work.bank
    asked.clear()
    source = Targets(
        tmp_path / "targets",
        teacher,
        bank,
        recipe.targets,
        seed=0,
        batch_size=recipe.training.batch_size,
        num_steps=recipe.num_steps,
        runtime=runtime,
        progress=Progress(),
    )
    for step in range(recipe.num_steps):
        source.batch(step)
    # Pools are whole batches, and hold as large a share of new predictions as all of them together.
    assert abs(sum(asked) - work.targets) <= source.pool_size
    assert (work.targets > 0) == bool(asked)
    counting.remove()
    data = Work.of(recipe, 0.02, teacher.sample_shape, 1, None)
    assert (data.bank, data.targets) == (0, wanted)


def test_guidance_takes_two_calls(tmp_path):
    pipe_dit.pipeline(10).save_pretrained(tmp_path)
    reference = resolve(str(tmp_path))
    family, noise = describe(reference)
    teacher = stand_in(reference, family, noise, "float32", torch.device("cpu"), BankSection())
    section = recipe_of(bank__guidance=2.0, bank__null_share=0.1)
    kept = Kept.of(teacher.sample_shape, section.bank, tmp_path)
    per_step = calls_per_step(teacher, section.bank)
    assert Work.of(section, 0.5, teacher.sample_shape, per_step, kept).bank == 2 * 160 * 3
    longer = recipe_of(bank__guidance=2.0, bank__null_share=0.1, stages__1__num_steps=180)
    found = {ratio: Work.of(longer, ratio, teacher.sample_shape, per_step, kept) for ratio in (0.05, 0.5)}
    assert found[0.05].bank == 2 * 160 * 3 and found[0.05].targets > 0
    assert found[0.5].bank == 2 * (160 + 128) * 3 and found[0.5].targets == 0


def test_seconds_are_calls_at_their_pace():
    recipe = recipe_of(training__preview_every_steps=15)
    pace = Pace("a card", False, teacher=3.0, student=0.5, step=7.0)
    protocol = Protocol(feature_space=None, sampler="ddim", sampler_steps=2, num_samples=4, seed=0, agreement_images=1)
    work = Work(bank=100, start=10, targets=40)
    told = expected(work, recipe, protocol, pace, drawn=False)
    assert (told.bank, told.start, told.targets) == (300, 30, 120)
    assert told.training == 30 * 7 + 2 * 16 * 2 * 0.5  # and two sheets of 16 samples of 2 calls
    # 4 samples of the student, twice of those beside it, and of the teacher; 4 with lines at 2 levels; 10 predictions
    # of agreement; 4 walks of both, twice.
    sampled = 2 * (4 * 0.5 + 2 * 4 * 0.5 + 4 * 3)
    lines, agreement, walks = 4 * (2 * 3 + 2 * (3 + 0.5)), 10 * (3 + 2 * 0.5), 2 * 4 * 2 * (3 + 0.5)
    assert told.evaluation == sampled + lines + agreement + walks
    assert told.total == pytest.approx(sum(getattr(told, part) for part in PARTS))
    two = expected(work, recipe, protocol, pace, drawn=False, count=2)
    assert (two.bank, two.targets, two.start, two.evaluation) == (150, 60, 15, told.evaluation / 2)
    teachers = 2 * (2 * 4 * 3)  # those of the probe, too
    assert expected(work, recipe, protocol, pace, drawn=True).evaluation == told.evaluation - teachers


def test_a_small_teacher_is_timed_here_and_nobodys_random_numbers_are_taken(folder):
    before = torch.get_rng_state()
    one, ten = (plan(folder, ratio=0.3, overrides=(f"stages.1.num_steps={n}",)) for n in (100, 100_000))
    assert torch.equal(torch.get_rng_state(), before)
    for row in (one, ten):
        told = row["expected"]
        assert told["measured"] and told["device"] == f"this CPU ({torch.get_num_threads()} thread)"
        assert all(told[part] > 0 for part in PARTS if part != "targets")
        assert told["total"] == pytest.approx(sum(told[part] for part in PARTS))
        assert row["seconds_per_step"] > 0 and not any("denoiser calls of each" in note for note in row["notes"])
    assert ten["expected"]["training"] > 100 * one["expected"]["training"]
    assert ten["expected"]["bank"] > 2 * one["expected"]["bank"]  # it grows


def test_a_large_one_is_told_by_the_data_sheet_of_the_card_that_would_do(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Disk(2**40))
    planned = plan(CONFIGS / "dit-xl-2-256.json", ratio=0.05)
    told = planned["expected"]
    assert (told["device"], told["measured"]) == (planned["card"], False)
    assert any("25 denoiser calls of each of the bank's samples stay on disk" in note for note in planned["notes"])
    one, large, larger = (
        plan(CONFIGS / "dit-xl-2-256.json", ratio=0.05, overrides=(f"training.batch_size={size}",))["seconds_per_step"]
        for size in (1, 6400, 12800)
    )
    assert larger == pytest.approx(2 * large)
    assert one > 2 * large / 6400  # the host starts as many operations for one sample
    family, student = describe_config("dit-xl-2-256.json")
    outlook = Outlook(None, family, None, "float16", recipes.load("dit"))
    assert outlook.of(student, None) is None
    seconds = {card.name: outlook.of(student, card)[0].bank for card in CARDS}
    assert seconds["T4"] > seconds["A100 40 GB"] == seconds["A100 80 GB"] > seconds["B200"]


def describe_config(name):
    from diffcompress.families import registry
    from diffcompress.families.base import complete
    from diffcompress.student.plan import plan as planned

    config = json.loads((CONFIGS / name).read_text())
    family = registry.find(config["_class_name"])
    return family, planned(family, complete(family.class_name, config), ratio=0.05)


def test_a_person_sees_it_in_plan_and_at_the_start_of_a_run(folder, tmp_path):
    shown = run("plan", folder, "--ratio", "0.3,0.2", "--quiet").stdout
    assert shown.splitlines()[0].split()[-1] == "time"
    assert [line for line in shown.splitlines() if line.startswith("- 0.2: expected on this CPU (1 thread): ")]
    arguments = command(folder, tmp_path / "run")
    first, again = run_process(arguments), run_process(arguments)
    assert first.stderr.count("expected on this CPU (1 thread): ") == 1
    assert "expected on" not in again.stderr
    timed = command(folder, tmp_path / "timed", "--max-time", "2s")
    told = run_process(timed).stderr
    assert "expected on this CPU (1 thread): " in told and "fit into 2 s of training" in told
