"""Moments and averages shared out over processes: each keeps its part, and all together what one would."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from diffcompress.recipe import TrainingSection
from diffcompress.records.run_files import read_tensors
from diffcompress.training.ema import Ema
from diffcompress.training.optim import Optimizer
from diffcompress.training.sharding import Sharding
from tests.jobs.test_shrink import launched_twice
from tests.jobs.tiny_teacher import command, run, save_teacher
from tests.training.test_optim import network, take_steps


@dataclass(frozen=True)
class Alone(Sharding):
    """A process's part of it, without the others."""

    def spread(self) -> None:
        pass


def parts(models: Sequence[nn.Module]) -> list[Sharding]:
    """One for each of `models`, which are alike."""
    return [Alone.of(model, index, len(models), torch.device("cpu")) for index, model in enumerate(models)]


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_each_process_steps_what_it_owns_and_all_moments_together_are_those_of_one(name):
    section, whole, models = TrainingSection(optimizer=name), network(), [network() for _ in range(3)]
    alone = Optimizer(whole, section)
    take_steps(whole, alone, 0, 1)
    together: dict[str, Tensor] = {}
    owned = [0] * 3
    for index, (model, sharding) in enumerate(zip(models, parts(models), strict=True)):
        optimizer = Optimizer(model, section, sharding)
        before = [p.clone() for p in model.parameters()]
        take_steps(model, optimizer, 0, 1)
        for mine, theirs, was in zip(model.parameters(), whole.parameters(), before, strict=True):
            torch.testing.assert_close(mine, theirs if sharding.mine(mine) else was)
            owned[index] += sharding.mine(mine)
        assert together.keys().isdisjoint(optimizer.tensors())
        together |= optimizer.tensors()
    assert sum(owned) == len(list(whole.parameters()))
    assert min(owned) > 0
    torch.testing.assert_close(together, alone.tensors())
    # One process goes on with what three had kept, and the other way round.
    Optimizer(network(), section).load(together)
    for model, sharding in zip(models, parts(models), strict=True):
        again = Optimizer(model, section, sharding)
        again.load(alone.tensors())
        torch.testing.assert_close(again.tensors(), {key: alone.tensors()[key] for key in again.tensors()})


def test_owners_have_about_as_much_to_keep():
    models = [nn.Sequential(*(nn.Linear(width, width) for width in (64, 48, 32, 32, 16))) for _ in range(2)]
    pairs = zip(models, parts(models), strict=True)
    sizes = [sum(p.numel() for p in model.parameters() if part.mine(p)) for model, part in pairs]
    assert max(sizes) < 1.1 * min(sizes)


def test_averages_of_weights_are_their_owners_and_those_of_buffers_everyones():
    models = [nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)) for _ in range(2)]
    kept = [set(Ema(model, 5, part).tensors) for model, part in zip(models, parts(models), strict=True)]
    assert kept[0] & kept[1] == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert kept[0] | kept[1] == set(models[0].state_dict())


def test_two_processes_that_share_their_moments_end_as_they_would_without(tmp_path):
    """Over a preview, two stages and a round more, which goes on from the checkpoint that was gathered."""
    teacher = save_teacher(tmp_path / "teacher")
    changes = {"stages__1__least_gain": 0.9, "training__preview_every_steps": 10}
    for name, shard in (("each", "false"), ("shared", "true")):
        made = launched_twice(command(teacher, tmp_path / name, "--json", training__shard=shard, **changes))
        assert made.returncode == 0, made.stderr
    assert "shared out over 2 processes" in made.stderr
    judged = json.loads((tmp_path / "shared" / "rounds.json").read_text())["rounds"]
    assert [one["steps"] for one in judged] == [30, 60]
    assert len(list((tmp_path / "shared").rglob("preview-*.png"))) == 6
    ends = {n: read_tensors(tmp_path / n / "stage-2-place" / "final" / "state.safetensors") for n in ("each", "shared")}
    torch.testing.assert_close(ends["shared"], ends["each"], rtol=1e-3, atol=1e-4)


def test_one_process_goes_on_with_what_two_had_shared(tmp_path):
    teacher = save_teacher(tmp_path / "teacher")
    made = launched_twice(command(teacher, tmp_path / "run", training__shard="true", stages__1__num_steps=8))
    assert made.returncode == 0, made.stderr
    stage = tmp_path / "run" / "stage-2-place"
    kept = read_tensors(stage / "final" / "state.safetensors")
    (stage / "final").rename(stage / "checkpoints" / "step-000000020")
    again = run(command(teacher, tmp_path / "run", training__shard="true", stages__1__num_steps=8))
    assert again.returncode == 0, again.stderr
    torch.testing.assert_close(read_tensors(stage / "final" / "state.safetensors"), kept, rtol=0, atol=0)
