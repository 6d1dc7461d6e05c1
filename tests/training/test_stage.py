"""The loop: guard rails, checkpoints, EMA, schedule, and that it learns."""

import json
import types

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from diffcompress.errors import DamagedError, DiffCompressError, RunStopped
from diffcompress.families import registry
from diffcompress.memory import SHARE, Need, gradients
from diffcompress.recipe import TargetsSection, TrainingSection
from diffcompress.runtime import Progress
from diffcompress.student.size import build
from diffcompress.training import budget, micro
from diffcompress.training.ema import Ema
from diffcompress.training.objective import FeatureTap, Trainee, freeze_unused, step_losses
from diffcompress.training.optim import learning_rate
from diffcompress.training.stage import run_stage
from tests.families.test_contract import inputs_of
from tests.training.tiny_job import job, rows


@pytest.mark.parametrize(
    "weights",
    [{"place": 1.0}, {"lift": 1.0}, {"output_kd": 1.0}, {"diffusion": 1.0}, {"output_kd": 1.0, "feature_kd": 0.1}],
)
def test_every_loss_falls(world, tmp_path, weights):
    run_stage(job(world, tmp_path, steps=60, weights=weights), 0, tmp_path / "stage")
    losses = [row["loss"] for row in rows(tmp_path / "stage")]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])


def test_bfloat16_bends_activations_and_nothing_else(world, tmp_path, monkeypatch):
    """The first step's loss and gradient norm are float32's up to rounding; weights and moments stay float32."""
    monkeypatch.setattr("diffcompress.training.objective.computes_bfloat16", lambda device: True)
    first = {}
    for precision in ("float32", "bfloat16"):
        work = job(world, tmp_path / precision, steps=3, weights={"output_kd": 1.0})
        work.trainee.precision = precision
        run_stage(work, 0, tmp_path / precision / "stage")
        first[precision] = rows(tmp_path / precision / "stage")[0]
        assert {p.dtype for p in work.trainee.parameters()} == {torch.float32}
        assert {v.dtype for v in work.state.ema.tensors.values()} == {torch.float32}
    for name in ("loss", "grad_norm"):
        exact, rounded = first["float32"][name], first["bfloat16"][name]
        assert rounded == pytest.approx(exact, rel=0.02)
        assert rounded != exact


def test_a_cpu_trains_in_float32(world, tmp_path):
    work = job(world, tmp_path)
    work.trainee.precision = "bfloat16"
    batch = work.targets.batch(0)
    asked, _ = work.trainee(batch.noisy, batch.timestep, batch.conditioning)
    work.trainee.precision = "float32"
    assert torch.equal(asked, work.trainee(batch.noisy, batch.timestep, batch.conditioning)[0])


def test_a_single_bad_step_is_skipped_and_counted(world, tmp_path):
    work = job(world, tmp_path)
    work.targets.steps, work.targets.times = frozenset({7}), 1
    run_stage(work, 0, tmp_path / "stage")
    assert (work.state.counters.skipped, work.state.counters.rollbacks) == (1, 0)
    assert [row["step"] for row in rows(tmp_path / "stage")] == [s for s in range(20) if s != 7]
    assert all(torch.isfinite(value).all() for value in work.state.ema.tensors.values())


def test_repeated_bad_steps_roll_back_with_half_the_rate(world, tmp_path):
    work = job(world, tmp_path)
    work.targets.steps, work.targets.times = frozenset(range(8, 20)), 5
    run_stage(work, 0, tmp_path / "stage")
    counters = work.state.counters
    assert (counters.skipped, counters.rollbacks, counters.learning_rate_scale, counters.step) == (5, 1, 0.5, 20)
    recorded = json.loads((tmp_path / "stage" / "final" / "state.json").read_text())
    assert recorded["rollbacks"] == 1
    rates = {row["step"]: row["learning_rate"] for row in rows(tmp_path / "stage")}
    assert [row["step"] for row in rows(tmp_path / "stage")] == list(range(20))
    assert rates[12] == pytest.approx(0.5 * learning_rate(work.recipe.training, 12, 20), rel=1e-3)


def test_bad_steps_between_two_logs_count_all_the_same(world, tmp_path):
    """The host hears of them when it next writes to the log; until then they change nothing."""
    work = job(world, tmp_path, log_every_steps=8)
    work.targets.steps, work.targets.times = frozenset({3, 5}), 2
    run_stage(work, 0, tmp_path / "stage")
    assert (work.state.counters.skipped, work.state.counters.rollbacks) == (2, 0)
    assert [row["step"] for row in rows(tmp_path / "stage")] == [0, 8, 16, 19]
    assert all(torch.isfinite(value).all() for value in work.state.model.state_dict().values())
    work = job(world, tmp_path / "again", log_every_steps=8)
    work.targets.steps, work.targets.times = frozenset(range(9, 20)), 5
    run_stage(work, 0, tmp_path / "again" / "stage")
    assert (work.state.counters.skipped, work.state.counters.rollbacks, work.state.counters.step) == (5, 1, 20)


def test_training_that_never_recovers_ends_the_run(world, tmp_path):
    work = job(world, tmp_path)
    work.targets.steps, work.targets.times = frozenset(range(20)), 10**6
    with pytest.raises(DiffCompressError, match="diverged"):
        run_stage(work, 0, tmp_path / "stage")
    assert not (tmp_path / "stage" / "final").exists()


def test_stopped_anywhere_and_resumed_is_bit_equal(world, tmp_path):
    whole = job(world, tmp_path / "whole")
    run_stage(whole, 0, tmp_path / "whole" / "stage")
    interrupted = job(world, tmp_path / "parts")
    interrupted.progress = StopAfter(interrupted.runtime, 9)
    with pytest.raises(RunStopped):
        run_stage(interrupted, 0, tmp_path / "parts" / "stage")
    interrupted.runtime.stop.signal = None
    resumed = job(world, tmp_path / "parts")
    run_stage(resumed, 0, tmp_path / "parts" / "stage")
    for name, value in whole.state.ema.tensors.items():
        assert torch.equal(value, resumed.state.ema.tensors[name]), name
    assert [(r["step"], r["loss"]) for r in rows(tmp_path / "whole" / "stage")] == [
        (r["step"], r["loss"]) for r in rows(tmp_path / "parts" / "stage")
    ]


def _flipped(final):
    content = bytearray((final / "state.safetensors").read_bytes())
    content[-5] ^= 64
    (final / "state.safetensors").write_bytes(bytes(content))


def _of_another_model(final):
    tensors = load_file(final / "state.safetensors")
    save_file({name: value for name, value in tensors.items() if "conv_in" not in name}, final / "state.safetensors")


def _not_finite(final):
    tensors = load_file(final / "state.safetensors")
    save_file({name: value * float("nan") for name, value in tensors.items()}, final / "state.safetensors")


@pytest.mark.parametrize("damage", [_flipped, _of_another_model, _not_finite])
def test_a_damaged_checkpoint_is_named_and_nothing_is_trained_from_it(world, tmp_path, damage):
    run_stage(job(world, tmp_path), 0, tmp_path / "stage")
    damage(tmp_path / "stage" / "final")
    again = job(world, tmp_path)
    with pytest.raises(DamagedError, match=r"final/state.safetensors is damaged") as caught:
        run_stage(again, 0, tmp_path / "stage")
    assert caught.value.hint.startswith(f"delete {tmp_path / 'stage' / 'final'} and")


@pytest.mark.parametrize("content", ["", '{"step": 3, "skipped": 0, "rollbacks": 0, "seconds": 1.0}', '{"step": "x"}'])
def test_counters_are_those_of_the_tensors(world, tmp_path, content):
    run_stage(job(world, tmp_path), 0, tmp_path / "stage")
    file = tmp_path / "stage" / "final" / "state.json"
    before = json.loads(file.read_text())
    file.write_text(content)
    again = job(world, tmp_path)
    run_stage(again, 0, tmp_path / "stage")
    assert again.state.counters.step == before["step"] == 20
    assert json.loads(file.read_text()) == before


class StopAfter(Progress):
    def __init__(self, runtime, step):
        self.runtime, self.step = runtime, step

    def update(self, task, done, total, **values):
        if task == "only" and done == self.step:
            self.runtime.stop.signal = 15


def test_the_average_forgets_its_start_and_has_its_half_life():
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(model.weight, 0.0)
    ema = Ema(model, half_life_steps=10)
    torch.nn.init.constant_(model.weight, 1.0)
    for step in range(10_000, 10_010):
        ema.update(step)
    assert ema.tensors["weight"].item() == pytest.approx(0.5, abs=1e-3)
    early = Ema(model, half_life_steps=10**6)
    torch.nn.init.constant_(model.weight, 5.0)
    for step in range(50):
        early.update(step)
    assert early.tensors["weight"].item() == pytest.approx(5.0, abs=0.01)


def test_the_rate_warms_up_and_falls_to_zero():
    section = TrainingSection(learning_rate=1.0, warmup_steps=10)
    rates = [learning_rate(section, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates[-1] < 0.01
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert learning_rate(section.model_copy(update={"schedule": "constant"}), 99, 100) == 1.0


def test_a_budget_counts_all_of_a_step_and_leaves_the_student_as_it_was(world, tmp_path, monkeypatch):
    """By a clock that nothing moves but batches put together (2 s) and averages of weights (1 s)."""
    work, clock = job(world, tmp_path, steps=20), types.SimpleNamespace(now=0.0)

    def timed(real, seconds):
        def call(*values):
            clock.now += seconds
            return real(*values)

        return call

    monkeypatch.setattr(budget, "time", types.SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(work.targets, "assembled", timed(work.targets.assembled, 2.0))
    monkeypatch.setattr(work.state.ema, "update", timed(work.state.ema.update, 1.0))
    before = {name: value.clone() for name, value in work.state.model.state_dict().items()}
    recipe = budget.fit_steps(work, 300.0)
    assert recipe.num_steps == round(budget.TRAINING_SHARE * 300 / 3)
    assert not any(torch.equal(before[name], value) for name, value in work.state.ema.tensors.items())
    assert all(torch.equal(before[name], value) for name, value in work.state.model.state_dict().items())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("reuse", "share", "free", "steps"),
    [
        (1, 1.0, 0, 100 / 3),  # 1 s for a step, 2 s for the teacher's part of it
        (8, 1.0, 0, 100 / 1.25),
        (8, 1.0, 100, 100),
        (8, 1.0, 50, (100 + 50 * 0.25) / 1.25),
        (8, 0.5, 1000, 100 / 1.125),
    ],
)
def test_steps_that_fit_are_those_whose_predictions_are_stored_and_some_more(reuse, share, free, steps):
    section = TargetsSection(reuse=reuse, trajectory_share=share)
    assert budget.fitting(100.0, 1.0, 2.0, section, free) == pytest.approx(steps)


@pytest.mark.parametrize("size", [4, 2, 3])
def test_micro_batches_give_the_gradient_of_the_whole_batch(world, tmp_path, size):
    """Of a loss without a gate over the batch; the log tells the same too."""
    work = job(world, tmp_path, weights={"output_kd": 1.0})
    batch, stage, runtime = work.targets.batch(0), work.recipe.stages[0], work.runtime
    found = []
    for rows_each in (8, size):
        work.trainee.zero_grad()
        total, terms = micro.backward(work.trainee, work.teacher, batch, stage, runtime, runtime.mean, rows_each)
        found.append((total, terms["output_kd"], [p.grad.clone() for p in work.trainee.parameters()]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)


def test_micro_batches_are_what_memory_holds(world, tmp_path, monkeypatch):
    """By what a step on a real batch takes, beside optimizer and averages that are not there yet."""
    work = job(world, tmp_path)
    trainee, teacher, stage, device = work.trainee, work.teacher, work.recipe.stages[0], work.runtime.device
    assert micro.fit(trainee, teacher, stage, device).part(12) == 12
    batch = work.targets.batch(0)

    def step(rows):
        step_losses(trainee, teacher, batch.split(rows)[0], stage, lambda value: value)[0].backward()

    with gradients(trainee):
        need = Need.of(step, device)
    assert need.row > 10_000
    state = (micro.GRADIENT_BYTES + micro.KEPT_BYTES) * sum(p.numel() for p in trainee.parameters())
    for fitting, expected in ((11, 6), (4, 4), (1, 1), (0, 1)):
        free = types.SimpleNamespace(available=int((need.bytes(fitting) + need.row / 2) / SHARE) + state)
        monkeypatch.setattr(psutil, "virtual_memory", lambda free=free: free)
        found = micro.fit(trainee, teacher, stage, device)
        assert (found.part(12), found.recompute) == (expected, fitting == 0)


def test_what_the_optimizer_keeps_is_shared_out_where_one_process_does_not_hold_it(world, tmp_path, monkeypatch):
    work = job(world, tmp_path)
    trainee, teacher, stage, device = work.trainee, work.teacher, work.recipe.stages[0], work.runtime.device
    count, need = sum(p.numel() for p in trainee.parameters()), micro._need(trainee, teacher, stage, device)
    each, shared = (count * (micro.GRADIENT_BYTES + micro.KEPT_BYTES // keepers) for keepers in (1, 4))
    for state, asked in ((each, False), (shared, True)):
        free = types.SimpleNamespace(available=int(1.05 * need.bytes(1) / SHARE) + state)
        monkeypatch.setattr(psutil, "virtual_memory", lambda free=free: free)
        found = micro.fit(trainee, teacher, stage, device, processes=4)
        assert (found.shard, found.recompute) == (asked, False)
        assert not micro.fit(trainee, teacher, stage, device).shard
        assert micro.fit(trainee, teacher, stage, device, processes=4, shard=False).recompute is asked


def test_activations_are_computed_again_where_one_sample_does_not_fit_and_gradients_are_the_same(
    world, tmp_path, monkeypatch
):
    work = job(world, tmp_path)
    trainee, teacher, stage, device = work.trainee, work.teacher, work.recipe.stages[0], work.runtime.device
    batch, runtime = work.targets.batch(0), work.runtime
    assert not micro.fit(trainee, teacher, stage, device).recompute
    need = micro._need(trainee, teacher, stage, device)
    state = (micro.GRADIENT_BYTES + micro.KEPT_BYTES) * sum(p.numel() for p in trainee.parameters())
    for part, asked in ((1.05, False), (0.95, True)):
        free = types.SimpleNamespace(available=int(part * need.bytes(1) / SHARE) + state)
        monkeypatch.setattr(psutil, "virtual_memory", lambda free=free: free)
        assert micro.fit(trainee, teacher, stage, device).recompute is asked
        assert not trainee.student.is_gradient_checkpointing
    found = []
    for _ in range(2):
        trainee.zero_grad()
        total, _ = micro.backward(trainee, teacher, batch, stage, runtime, runtime.mean, 8)
        found.append([total, *(p.grad.clone() for p in trainee.parameters())])
        trainee.student.enable_gradient_checkpointing()
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert micro._need(trainee, teacher, stage, device).bytes(8) < 0.8 * need.bytes(8)
    trainee.student.disable_gradient_checkpointing()


def test_adapters_follow_from_the_seed_alone(world, tmp_path):
    weights = {"output_kd": 1.0, "feature_kd": 1.0}
    first = job(world, tmp_path, weights=weights).trainee.adapters.state_dict()
    torch.rand(3)  # whatever else the process has drawn
    again = job(world, tmp_path, weights=weights).trainee.adapters.state_dict()
    assert first
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_adapters_have_gradients_in_a_stage_that_does_not_use_them(world, tmp_path):
    """Without them a process group ends at the second step. Those of the student stay as they are."""
    found = []
    for weights in ({"output_kd": 1.0}, {"output_kd": 1.0, "feature_kd": 0.0}):
        work = job(world, tmp_path, weights=weights)
        batch, stage, runtime = work.targets.batch(0), work.recipe.stages[0], work.runtime
        total, terms = micro.backward(work.trainee, work.teacher, batch, stage, runtime, runtime.mean, 8)
        assert all(p.grad is not None for p in work.trainee.parameters())
        found.append((total, dict(terms), [p.grad for p in work.trainee.student.parameters()]))
    assert any(True for _ in work.trainee.adapters.parameters())
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("norm", ["relative", "squared"])
def test_features_are_those_of_the_blocks_that_the_norm_asks_for(world, tmp_path, norm):
    work = job(world, tmp_path, weights={"output_kd": 1.0, "feature_kd": 1.0})
    stage = work.recipe.stages[0].model_copy(update={"feature_norm": norm})
    batch, runtime = work.targets.batch(0), work.runtime
    _, terms = micro.backward(work.trainee, work.teacher, batch, stage, runtime, runtime.mean, 8)
    assert all(p.grad is not None for p in work.trainee.parameters())
    _, ours = work.trainee(batch.noisy, batch.timestep, batch.conditioning)
    with FeatureTap(work.teacher.denoiser, work.teacher.family) as tap:
        work.teacher.predict(batch.noisy, batch.timestep, batch.conditioning)
    errors = [(s - t).square().flatten(1) for s, t in zip(ours, tap.features, strict=True)]
    if norm == "squared":
        expected = sum(error.mean() for error in errors)
    else:
        sizes = [feature.square().flatten(1).sum(1) for feature in tap.features]
        up = [place for place, name in enumerate(tap.names) if name.startswith("up_blocks")]
        assert 1 < len(up) < len(tap.names)
        expected = sum((errors[place].sum(1) / sizes[place]).mean() for place in up) / len(up)
    torch.testing.assert_close(terms["feature_kd"], expected.detach())


def test_parameters_that_nothing_depends_on_are_frozen():
    """Qwen-Image's last block makes a text stream that nobody reads: a process group would wait for its gradients."""
    family = next(f for f in registry.FAMILIES if f.class_name == "QwenImageTransformer2DModel")
    trainee = Trainee(build(family, family.tiny_config(), "cpu"), family)
    freeze_unused(trainee, inputs_of(family, family.tiny_config(), 1))
    frozen = {name.removeprefix("student.") for name, p in trainee.named_parameters() if not p.requires_grad}
    assert frozen
    assert all(name.startswith("transformer_blocks.2.") and ("txt" in name or "add" in name) for name in frozen)
