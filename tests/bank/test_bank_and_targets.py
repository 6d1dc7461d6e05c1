"""The bank and the targets: what they hold follows from integers, whoever draws it and in whatever order."""

import copy
import os
import shutil
import types
from dataclasses import replace
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from diffcompress.bank import bank as banks
from diffcompress.bank import keeping
from diffcompress.bank.shards import make_shards, read_shards, shard_path
from diffcompress.bank.targets import TAYLOR_BATCH_SIZE, Targets, refit_batch, taylor_batches
from diffcompress.errors import RunStopped, UsageError
from diffcompress.images.images import Images
from diffcompress.noise import levels as noise_levels
from diffcompress.pipeline.load import load
from diffcompress.pipeline.sampling import sample
from diffcompress.recipe import BankSection, TargetsSection
from diffcompress.records.run_files import read_json, write_json
from diffcompress.runtime import Progress, start
from diffcompress.sources.resolve import resolve
from tests import tiny
from tests.jobs.tiny_teacher import save_teacher

SECTION = BankSection(num_samples=200, sampler_steps=4)


@pytest.fixture(scope="module")
def runtime():
    return start("cpu")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = save_teacher(tmp_path_factory.mktemp("teacher") / "teacher", num_classes=3)
    return load(resolve(str(folder)))


@pytest.fixture(scope="module")
def bank(teacher, runtime, tmp_path_factory):
    return banks.fill(tmp_path_factory.mktemp("bank"), teacher, SECTION, 0, None, runtime, Progress())


def targets(folder, teacher, bank, runtime, with_diffusion=True, **changes):
    values = {"reuse": 3, "pool_size": 32, "trajectory_share": 0.5} | changes
    return Targets(
        folder,
        teacher,
        bank,
        TargetsSection(**values),
        seed=0,
        batch_size=8,
        num_steps=100,
        runtime=runtime,
        progress=Progress(),
        with_diffusion=with_diffusion,
    )


def every_call(bank):
    return bank.calls(torch.arange(bank.num_trajectory))


def same_calls(one, other):
    return all(torch.equal(every_call(one)[name], value) for name, value in every_call(other).items())


def test_bank_samples_are_the_teachers_own(teacher, bank):
    indices = [3, 150, 199]
    alone = sample(teacher, indices, seed=0, num_steps=4, eta=1.0, jitter=True)
    torch.testing.assert_close(bank.clean[indices], alone, rtol=1e-4, atol=1e-4)
    assert bank.condition.unique().tolist() == [0, 1, 2]


def test_a_teacher_that_predicts_no_numbers_is_told_from_a_bad_student(teacher, runtime, tmp_path):
    broken = replace(teacher, denoiser=copy.deepcopy(teacher.denoiser))
    with torch.no_grad():
        broken.denoiser.conv_out.bias.fill_(torch.inf)
    with pytest.raises(UsageError, match="the teacher predicts NaN or infinite values at timestep"):
        banks.fill(tmp_path, broken, SECTION, 0, None, runtime, Progress())


def test_trajectories_hold_what_the_teacher_predicts(teacher, bank):
    assert bank.num_trajectory == 200 * 4
    rows = torch.tensor([0, 5, 401, 799])
    calls = bank.calls(rows)
    noisy, timestep, index = (calls[name] for name in ("noisy", "timestep", "index"))
    assert index.tolist() == [0, 1, 100, 199]
    with torch.no_grad():
        expected = teacher.predict(noisy, timestep, {"class_labels": bank.condition[index]})
    torch.testing.assert_close(calls["prediction"], expected, rtol=1e-3, atol=1e-4)
    assert len(every_call(bank)["timestep"].unique()) > 20  # jittered grids visit (nearly) all of the 50 timesteps


def test_every_batch_holds_the_teachers_prediction(tmp_path, teacher, bank, runtime):
    source = targets(tmp_path, teacher, bank, runtime)
    for step in (0, 1, 7, 13):
        batch = source.batch(step)
        with torch.no_grad():
            expected = teacher.predict(batch.noisy, batch.timestep, batch.conditioning)
        torch.testing.assert_close(batch.prediction, expected, rtol=1e-3, atol=1e-4)


def test_the_diffusion_target_is_the_noise_in_the_input(tmp_path, teacher, bank, runtime):
    batch = targets(tmp_path, teacher, bank, runtime, trajectory_share=0.0).batch(2)
    clean, _ = teacher.noise.clean_and_noise(batch.diffusion_target, batch.noisy, batch.timestep)
    nearest = (clean[:, None] - bank.clean[None]).abs().amax((2, 3, 4)).amin(1)
    assert (nearest < 0.02).all()  # every input is a noised bank sample
    without = targets(tmp_path, teacher, bank, runtime, trajectory_share=0.0, with_diffusion=False).batch(2)
    assert without.diffusion_target is None and torch.equal(without.noisy, batch.noisy)
    assert [len(part.noisy) for part in without.split(3)] == [3, 3, 2]
    for batch_part, rows in zip(batch.split(3), (slice(0, 3), slice(3, 6), slice(6, 8)), strict=True):
        assert torch.equal(batch_part.timestep, batch.timestep[rows])
        assert torch.equal(batch_part.diffusion_target, batch.diffusion_target[rows])
        assert torch.equal(batch_part.conditioning["class_labels"], batch.conditioning["class_labels"][rows])
    assert len(batch.conditioning["class_labels"].unique()) > 1


def test_a_pool_is_used_as_often_as_asked_and_then_replaced(tmp_path, teacher, bank, runtime):
    source = targets(tmp_path, teacher, bank, runtime)
    steps_per_pool = 32 // 8 * 3
    seen = torch.cat([source.batch(step).noisy.flatten(1)[:, 0] for step in range(steps_per_pool)])
    values, counts = seen.unique(return_counts=True)
    assert len(values) == 32
    assert (counts == 3).all()
    first_epoch, second_epoch = seen[:32], seen[32:64]
    assert not torch.equal(first_epoch, second_epoch)
    following = torch.cat(
        [source.batch(step).noisy.flatten(1)[:, 0] for step in range(steps_per_pool, 2 * steps_per_pool)]
    )
    assert not set(following.tolist()) & set(values.tolist())
    assert [path.name for path in tmp_path.iterdir()] == ["pool-00001-of-16-antithetic"]


def test_any_step_can_be_had_at_any_time(tmp_path, teacher, bank, runtime):
    one = targets(tmp_path / "a", teacher, bank, runtime).batch(17)
    other = targets(tmp_path / "b", teacher, bank, runtime)
    other.batch(0)
    again = other.batch(17)
    assert torch.equal(one.noisy, again.noisy)
    assert torch.equal(one.prediction, again.prediction)


def test_fresh_targets_are_new_every_step(tmp_path, teacher, bank, runtime):
    source = targets(tmp_path, teacher, bank, runtime, reuse=1)
    one, two = source.batch(0), source.batch(1)
    assert not torch.equal(one.noisy, two.noisy)
    assert (one.timestep.view(4, 2).sum(1) == 49).all()  # antithetic pairs (t, T-1-t)
    assert not list(tmp_path.iterdir())
    with torch.no_grad():
        torch.testing.assert_close(
            one.prediction, teacher.predict(one.noisy, one.timestep, one.conditioning), rtol=1e-4, atol=1e-4
        )


def test_a_stop_while_the_bank_is_made_keeps_what_is_done(tmp_path, teacher, runtime, bank):
    runtime.stop.signal = 15
    try:
        with pytest.raises(RunStopped):
            banks.fill(tmp_path, teacher, SECTION, 0, None, runtime, Progress())
    finally:
        runtime.stop.signal = None
    first = tmp_path / "shard-00000.safetensors"
    made = first.stat().st_mtime_ns
    resumed = banks.fill(tmp_path, teacher, SECTION, 0, None, runtime, Progress())
    assert first.stat().st_mtime_ns == made
    assert torch.equal(resumed.clean, bank.clean)


class Heard(Progress):
    """Keeps what it was told."""

    def __init__(self):
        self.told, self.warnings = [], []

    def warn(self, text):
        self.warnings.append(text)

    def note(self, text):
        self.told.append(text)

    def update(self, task, done, total, **values):
        self.told.append((task, done, total))


def test_what_was_there_before_is_not_told_as_speed(tmp_path, runtime):
    def make(rows):
        return {"row": torch.tensor(list(rows))}

    def again():
        heard = Heard()
        make_shards(tmp_path, 5, 2, make, runtime, heard, "rows")
        return heard.told

    assert again()[0] == ("rows", 0, 5) and read_shards(tmp_path, 5, 2)["row"].tolist() == [0, 1, 2, 3, 4]
    assert again() == [("rows", 5, 5)]
    shard_path(tmp_path, 1).unlink()
    assert again() == [("rows", 2, 5), ("rows", 4, 5), ("rows", 5, 5)]


def _cut(folder):
    file = shard_path(folder, 1)
    file.write_bytes(file.read_bytes()[:-3])


def _swapped(folder):
    shutil.copyfile(shard_path(folder, 0), shard_path(folder, 1))


def _not_a_number(folder):
    rows = load_file(shard_path(folder, 1))
    rows["clean"][0] = torch.nan
    save_file(rows, shard_path(folder, 1))


def _a_pipe(folder):
    shard_path(folder, 1).unlink()
    os.mkfifo(shard_path(folder, 1))


def _of_another_key(folder):
    write_json(folder / "bank.json", read_json(folder / "bank.json") | {"key": "0" * 64})


def _of_no_size(folder):
    write_json(folder / "bank.json", read_json(folder / "bank.json") | {"batch_size": "many"})


@pytest.mark.parametrize("damage", [_cut, _swapped, _not_a_number, _a_pipe, _of_another_key, _of_no_size])
def test_what_is_damaged_in_a_bank_is_made_again_and_is_the_same(tmp_path, teacher, runtime, bank, damage):
    banks.fill(tmp_path, teacher, SECTION, 0, None, runtime, Progress())
    damage(tmp_path)
    heard = Heard()
    again = banks.fill(tmp_path, teacher, SECTION, 0, None, runtime, heard)
    assert len(heard.warnings) == 1 and " is damaged: " in heard.warnings[0] and str(tmp_path) in heard.warnings[0]
    assert torch.equal(again.clean, bank.clean) and again.key == bank.key
    assert same_calls(again, bank)


def test_targets_of_other_weights_are_made_again(tmp_path, teacher, bank, runtime):
    right = targets(tmp_path / "a", teacher, bank, runtime).batch(0)
    targets(tmp_path / "b", teacher, replace(bank, key="another"), runtime).batch(0)
    other = targets(tmp_path / "b", teacher, bank, runtime)
    other.progress = Heard()
    assert torch.equal(other.batch(0).prediction, right.prediction)
    assert [" is damaged: it holds something else" in text for text in other.progress.warnings] == [True]


def test_guidance_of_a_teacher_that_knows_none_is_told(tmp_path, teacher, runtime):
    heard = Heard()
    banks.fill(tmp_path, teacher, SECTION.model_copy(update={"guidance": 3.0}), 0, None, runtime, heard)
    assert any(isinstance(text, str) and "bank.guidance 3 does nothing" in text for text in heard.told)


def test_samples_that_are_nothing_like_the_others_are_told(tmp_path, guided_teacher, runtime):
    """One class of five is broken: its embedding is a thousand times as large."""
    section, broken = BankSection(num_samples=20, sampler_steps=3), copy.deepcopy(guided_teacher.denoiser)
    with torch.no_grad():
        for block in broken.transformer_blocks:
            block.norm1.emb.class_embedder.embedding_table.weight[2] *= 1000
    unclipped = replace(guided_teacher, noise=replace(guided_teacher.noise, clip_sample=False))
    for denoiser, told in ((guided_teacher.denoiser, []), (broken, [True])):
        heard, teacher = Heard(), replace(unclipped, denoiser=denoiser)
        bank = banks.fill(tmp_path / str(len(told)), teacher, section, 0, None, runtime, heard)
        count = int((bank.condition == 2).sum())
        assert 0 < count < 10
        assert [f"{count} of the bank's 20 samples are more than 8 times" in text for text in heard.warnings] == told


def test_a_bank_of_another_seed_is_refused(tmp_path, teacher, runtime):
    section = BankSection(num_samples=8, sampler_steps=2)
    banks.fill(tmp_path, teacher, section, 0, None, runtime, Progress())
    with pytest.raises(UsageError, match="another seed"):
        banks.fill(tmp_path, teacher, section, 1, None, runtime, Progress())
    banks.fill(tmp_path, teacher, section, 0, None, runtime, Progress())


BLACK = Images(torch.zeros(8, 1, 8, 8, dtype=torch.uint8), torch.zeros(8, dtype=torch.long), [], "mine")


@pytest.mark.parametrize("own", [None, BLACK])
def test_a_run_that_goes_on_asks_its_teacher_in_the_same_batches(tmp_path, teacher, runtime, own, monkeypatch):
    """However much memory is free by then: rounding depends on it."""
    section = BankSection(num_samples=8, sampler_steps=2)
    free = types.SimpleNamespace(available=0)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    assert banks.fill(tmp_path, teacher, section, 0, own, runtime, Progress()).batch_size == 1
    free.available = 2**40
    bank = banks.fill(tmp_path, teacher, section, 0, own, runtime, Progress())
    assert bank.batch_size == 1
    rows = []
    handle = teacher.denoiser.register_forward_pre_hook(lambda _model, args: rows.append(len(args[0])))
    targets(tmp_path / "t", teacher, bank, runtime, reuse=1).batch(0)
    handle.remove()
    assert rows == [1] * 8


def test_stored_calls_are_used_before_the_teacher_is_asked_again(tmp_path, teacher, bank, runtime):
    source = targets(tmp_path, teacher, bank, runtime, trajectory_share=1.0, pool_size=4096)
    assert source.num_trajectory == source.pool_size == 800  # 100 steps of 8, all of the 800 stored calls once
    seen = torch.cat([source.batch(step).noisy.flatten(1)[:, 0] for step in range(100)])
    assert len(seen.unique()) == 800
    assert not list(tmp_path.iterdir())
    many = Targets(
        tmp_path,
        teacher,
        bank,
        TargetsSection(reuse=2),
        seed=0,
        batch_size=8,
        num_steps=400,
        runtime=runtime,
        progress=Progress(),
    )
    assert many.num_trajectory == many.pool_size // 2  # 1,600 predictions wanted, 800 stored


def test_levels_by_noise_use_the_calls_between_the_ends_more_often(tmp_path, teacher, bank, runtime):
    plain, by_noise = (
        targets(tmp_path / levels, teacher, bank, runtime, trajectory_share=1.0, pool_size=4096, levels=levels)
        for levels in ("timesteps", "noise")
    )
    assert plain.num_trajectory == by_noise.num_trajectory == 800
    seen = torch.cat([by_noise.batch(step).timestep for step in range(100)])
    again = targets(tmp_path / "b", teacher, bank, runtime, trajectory_share=1.0, pool_size=4096, levels="noise")
    assert torch.equal(again.batch(57).timestep, by_noise.batch(57).timestep)
    expected = noise_levels.weights(teacher.noise, every_call(bank)["timestep"])
    lowest = every_call(bank)["timestep"] < 10
    share = (expected[lowest].sum() / expected.sum()).item()
    assert (seen < 10).float().mean().item() == pytest.approx(share, abs=0.05)
    assert share < 0.7 * lowest.float().mean().item()


def test_fresh_predictions_are_spread_by_noise_too(tmp_path, teacher, bank, runtime):
    source = targets(tmp_path, teacher, bank, runtime, reuse=1, levels="noise")
    seen = torch.cat([source.batch(step).timestep for step in range(50)])
    plain = torch.cat([targets(tmp_path, teacher, bank, runtime, reuse=1).batch(step).timestep for step in range(50)])
    assert (seen < 10).sum() < 0.8 * (plain < 10).sum()
    assert seen.min() >= 0 and seen.max() < 50


def test_a_bank_grows_by_the_samples_after_its_own(teacher, bank, runtime, tmp_path):
    """200 samples of 4 calls; for 1,000 calls 50 more, in whole shards of 128; drawn once, the first ones untouched."""

    def grow(calls, section=SECTION, bank=bank):
        return banks.grown(bank, tmp_path, calls, 0.02, teacher, section, 0, runtime, Progress())

    assert grow(800) is bank
    assert grow(5000, SECTION.model_copy(update={"grow": False})) is bank
    more = grow(1000)
    assert (more.num_samples, more.num_trajectory, more.key != bank.key) == (328, 328 * 4, True)
    assert torch.equal(more.clean[:200], bank.clean)
    alone = sample(teacher, [200, 327], seed=0, num_steps=4, eta=1.0, jitter=True)
    torch.testing.assert_close(more.clean[[200, 327]], alone, rtol=1e-4, atol=1e-4)
    assert every_call(more)["index"][[0, 800, -1]].tolist() == [0, 200, 327]
    stamps = [file.stat().st_mtime_ns for file in sorted((tmp_path / "grown").iterdir())]
    again = grow(1300)
    assert same_calls(more, again)
    most = keeping.call_bytes(teacher.sample_shape) * 4 * (200 + 300)
    full = replace(bank, kept=replace(bank.kept, most_bytes=most))
    assert grow(10**6, bank=full).num_samples == 200 + 2 * 128  # what the bytes hold
    kept = [file.stat().st_mtime_ns for file in sorted((tmp_path / "grown").iterdir())]
    assert kept[: len(stamps)] == stamps


def test_a_pool_of_large_samples_holds_fewer(tmp_path, teacher, bank, runtime, monkeypatch):
    monkeypatch.setattr("diffcompress.bank.targets.POOL_BYTES", 17 * keeping.call_bytes(teacher.sample_shape))
    source = targets(tmp_path, teacher, bank, runtime, trajectory_share=1.0, pool_size=4096)
    assert source.pool_size == 24  # whole batches of 8
    seen = torch.cat([source.batch(step).noisy.flatten(1)[:, 0] for step in range(99)])
    assert len(seen.unique()) == 99 * 8  # pool after pool, every stored call once


@pytest.fixture(scope="module")
def guided_teacher(tmp_path_factory):
    return load(resolve(str(tiny.save_dit(tmp_path_factory.mktemp("dit")))))


def test_guidance_leaves_null_entries_in_the_trajectories(guided_teacher, runtime, tmp_path):
    section = BankSection(num_samples=64, sampler_steps=4, guidance=3.0, null_share=0.25)
    bank = banks.fill(tmp_path, guided_teacher, section, 0, None, runtime, Progress())
    null = bank.conditions.null
    assert null == 5 and bank.condition.max() < null
    calls = every_call(bank)
    condition = calls["condition"]
    assert 0.1 < (condition == null).float().mean() < 0.4
    told = bank.condition[calls["index"]]
    assert (condition[condition != null] == told[condition != null]).all()
    for row in (0, 17, int((condition == null).nonzero()[0])):
        one = bank.calls(torch.tensor([row]))
        given = bank.conditions.rows(one["condition"])
        expected = guided_teacher.predict_all(one["noisy"], one["timestep"], given)
        assert expected.shape[1] == 2 * bank.clean.shape[1]  # the learned variance is kept too
        torch.testing.assert_close(one["prediction"], expected, rtol=1e-4, atol=1e-4)


def test_guidance_moves_the_samples_and_one_is_none(guided_teacher):
    plain, same, guided = (
        sample(guided_teacher, [0, 1], seed=0, num_steps=3, guidance=scale) for scale in (1.0, 1.0, 4.0)
    )
    assert torch.equal(plain, same)
    assert not torch.allclose(plain, guided)


def test_fresh_targets_have_the_recipes_share_of_null_conditions(guided_teacher, runtime, tmp_path):
    section = BankSection(num_samples=16, sampler_steps=2, null_share=0.25)
    bank = banks.fill(tmp_path / "bank", guided_teacher, section, 0, None, runtime, Progress())
    made = targets(tmp_path / "t", guided_teacher, bank, runtime, reuse=1)
    labels = torch.cat([made.batch(step).conditioning["class_labels"] for step in range(20)])
    assert 0.15 < (labels == bank.conditions.null).float().mean() < 0.35


def test_layers_are_refitted_at_noise_levels_spread_evenly(teacher, bank):
    noisy, timestep, conditioning = refit_batch(teacher, bank, 0, 25)
    assert [len(value) for value in (noisy, timestep, conditioning["class_labels"])] == [25] * 3
    assert (timestep // 2).tolist() == list(range(25))  # one of every two of the 50 timesteps
    clean, _ = teacher.noise.clean_and_noise(teacher.noise.target(noisy, noisy, timestep), noisy, timestep)
    assert torch.isfinite(clean).all()
    again, other = (refit_batch(teacher, bank, seed, 25)[0] for seed in (0, 1))
    assert torch.equal(noisy, again) and not torch.equal(noisy, other)


def test_channels_are_ranked_at_mirrored_noise_levels_in_batches_that_memory_holds(teacher, bank):
    drawn: list[list[Any]] = [
        list(taylor_batches(teacher, replace(bank, batch_size=size), 0)) for size in (TAYLOR_BATCH_SIZE, 12)
    ]
    whole, parts = drawn
    assert [len(part[0]) for part in parts[:3]] == [12, 12, 8]
    for number in (0, 1, 3):
        joined = torch.cat([part[number] for part in parts])
        assert torch.equal(torch.cat([part[number] for part in whole]), joined)
    for noisy, timestep, conditioning, target in whole:
        assert (timestep.view(-1, 2).sum(1) == 49).all()
        clean, noise = teacher.noise.clean_and_noise(target, noisy, timestep)
        torch.testing.assert_close(teacher.noise.noisy(clean, noise, timestep), noisy)
        nearest = (clean[:, None] - bank.clean[None]).abs().amax((2, 3, 4)).min(1)
        assert (nearest.values < 0.02).all()
        assert torch.equal(conditioning["class_labels"], bank.condition[nearest.indices])


def test_a_run_of_no_steps_has_targets_to_spare(teacher, bank, runtime, tmp_path):
    values = {"seed": 0, "batch_size": 8, "num_steps": 0, "runtime": runtime, "progress": Progress()}
    made = Targets(tmp_path, teacher, bank, TargetsSection(), **values)
    assert made.pool_size >= 8
