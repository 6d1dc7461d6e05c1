"""One optimizer out of two: who gets which weight, and that nothing is lost on the way through a checkpoint."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from diffcompress.memory import peak
from diffcompress.recipe import TrainingSection
from diffcompress.training.muon import Muon
from diffcompress.training.optim import Optimizer, rate_share


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Conv2d(8, 1, 3), nn.Flatten(), nn.Linear(16, 4))


def take_steps(model: nn.Module, optimizer: Optimizer, first: int, last: int) -> None:
    for step in range(first, last):
        noisy = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(step))
        model(noisy).square().mean().backward()
        optimizer.step(1e-2)
        optimizer.zero_grad()


def test_muon_takes_matrices_and_adamw_the_rest():
    """A convolution is a matrix of one row per output channel; a weight with a single row is a vector."""
    model, expected = network(), network()
    take_steps(model, Optimizer(model, TrainingSection()), 0, 1)
    adamw = torch.optim.AdamW(expected.parameters(), lr=1e-2, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    noisy = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    expected(noisy).square().mean().backward()
    adamw.step()
    parted = {
        name
        for (name, mine), theirs in zip(model.named_parameters(), expected.parameters(), strict=True)
        if not torch.equal(mine, theirs)
    }
    assert parted == {"0.weight", "4.weight"}


def test_muon_agrees_with_that_of_torch():
    """Up to bfloat16, in which torch orthogonalises."""
    torch.manual_seed(0)
    for shape in ((8, 27), (27, 8), (16, 16)):
        mine, theirs = (nn.Parameter(torch.zeros(shape)) for _ in range(2))
        muon = Muon([mine])
        theirs_muon = torch.optim.Muon([theirs], lr=1e-3, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
        for _ in range(3):
            mine.grad = torch.randn(shape)
            theirs.grad = mine.grad.clone()
            muon.step(1e-3, torch.tensor(True))
            theirs_muon.step()
        assert torch.nn.functional.cosine_similarity(mine.flatten(), theirs.flatten(), dim=0) > 0.999
        assert mine.norm().item() == pytest.approx(theirs.norm().item(), rel=0.02)


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_weights_decay_by_their_rate(decay):
    """Decoupled, in both parts of the optimizer: with gradients of zero nothing else moves."""
    model = network()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = Optimizer(model, TrainingSection(weight_decay=decay))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step(0.1)
    for value, now in zip(before, model.parameters(), strict=True):
        torch.testing.assert_close(now.detach(), value * (1 - 0.1 * decay))


def newton_schulz(gradient):
    """The rounds as they are published, on the matrix itself, in float64."""
    x = gradient.flatten(1).double()
    wide = x.shape[0] <= x.shape[1]
    x = (x if wide else x.mT) / x.norm()
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x if wide else x.mT


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_matrices_of_many_shapes_go_together_and_each_as_if_alone(layout):
    """Wide, tall, square; small sides are worked on as larger ones; columns may lie in any order in memory."""
    torch.manual_seed(0)
    shapes = [(8, 3, 3, 3), (8, 3, 3, 3), (2, 16, 3, 3), (40, 8, 1, 1), (64, 4, 1, 1), (16, 16, 1, 1), (24, 8, 3, 3)]
    weights = [nn.Parameter(torch.zeros(shape).to(memory_format=layout)) for shape in shapes]
    weights += [nn.Parameter(torch.zeros(shape)) for shape in ((8, 27), (100, 30), (30, 100))]
    muon = Muon(weights)
    (groups,) = [stretch.groups for stretch in muon._stretches]
    assert len({group.size for group in groups}) < len({group.side for group in groups})
    for weight in weights:
        weight.grad = torch.randn(weight.shape)  # of another order in memory than its weight, for some
    muon.step(0.5, torch.tensor(True))
    for weight in weights:
        expected = -0.5 * 0.2 * max(weight.flatten(1).shape) ** 0.5 * newton_schulz(weight.grad)
        torch.testing.assert_close(weight.detach().flatten(1).double(), expected, rtol=1e-4, atol=1e-5)


def test_large_students_are_worked_on_in_parts_and_end_alike(monkeypatch):
    """Which bounds what the optimizer takes beside its moments: two copies of all weights, else."""
    torch.manual_seed(0)
    shapes = [(64, 64)] * 6 + [(32, 128)] * 2 + [(128, 100)]
    gradients = [torch.randn(shape) for shape in shapes]
    ended, kept, taken = [], [], []
    for most in (1 << 28, 8192):
        monkeypatch.setattr("diffcompress.training.muon.TOGETHER", most)
        weights = [nn.Parameter(torch.zeros(shape)) for shape in shapes]
        muon = Muon(weights)
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient.clone()
        taken.append(peak(partial(muon.step, 0.5, torch.tensor(True)), torch.device("cpu")))
        muon.step(0.5, torch.tensor(True))
        ended.append([weight.detach() for weight in weights])
        kept.append(muon.tensors())
        assert [[len(g.weights) for g in s.groups] for s in muon._stretches] in ([[2, 6, 1]], [[2], [2], [2], [2], [1]])
    torch.testing.assert_close(ended[0], ended[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(kept[0], kept[1])
    assert taken[1] < taken[0] / 2
    muon.load(kept[0])


def test_moments_and_decay_are_muons_own():
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(6, 9))
    twin, moment = weight.detach().double().clone(), torch.zeros(6, 9, dtype=torch.float64)
    muon = Muon([weight], weight_decay=0.1)
    for _ in range(3):
        weight.grad = torch.randn(6, 9)
        muon.step(0.01, torch.tensor(True))
        moment = 0.95 * moment + weight.grad.double()
        move = newton_schulz(weight.grad.double() + 0.95 * moment)
        twin = twin * (1 - 0.01 * 0.1) - 0.01 * 0.2 * 3 * move
    torch.testing.assert_close(weight.detach().double(), twin, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_gradient_that_is_not_finite_changes_nothing(bad):
    model = network()
    optimizer = Optimizer(model, TrainingSection(weight_decay=0.1))
    take_steps(model, optimizer, 0, 2)
    before = [value.clone() for value in (*model.parameters(), *optimizer.tensors().values())]
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, bad)
    optimizer.step(1e-2, torch.tensor(False))
    after = [*model.parameters(), *optimizer.tensors().values()]
    assert len(before) > 10 and all(torch.equal(one, two) for one, two in zip(before, after, strict=True))


def test_directions_move_alike_and_those_without_gradient_stay():
    torch.manual_seed(0)
    left, right = torch.linalg.qr(torch.randn(16, 4))[0], torch.linalg.qr(torch.randn(9, 4))[0]
    gradient = left @ torch.diag(torch.tensor([1.0, 0.3, 0.1, 0.03])) @ right.T
    weight = nn.Parameter(torch.zeros(16, 9))
    weight.grad = gradient
    Muon([weight]).step(1e-3, torch.tensor(True))
    moved = torch.linalg.svdvals(weight.detach()) / (1e-3 * 0.2 * 16**0.5)
    assert (moved[:4] > 0.6).all()
    assert (moved[:4] < 1.3).all()
    assert (moved[4:] < 1e-3).all()


def test_adamw_is_that_of_torch():
    model, expected = network(), network()
    optimizer = Optimizer(model, TrainingSection(optimizer="adamw", weight_decay=0.1))
    adamw = torch.optim.AdamW(expected.parameters(), lr=1e-2, betas=(0.9, 0.99), weight_decay=0.1, fused=True)
    noisy = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    expected(noisy).square().mean().backward()
    adamw.step()
    take_steps(model, optimizer, 0, 1)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters(), strict=True))


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_moments_survive_a_checkpoint(name):
    section = TrainingSection(optimizer=name)
    straight, stopped = network(), network()
    take_steps(straight, Optimizer(straight, section), 0, 4)
    first = Optimizer(stopped, section)
    take_steps(stopped, first, 0, 2)
    second = Optimizer(stopped, section)
    second.load({key: value.clone() for key, value in first.tensors().items()})
    take_steps(stopped, second, 2, 4)
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), stopped.parameters(), strict=True))


def test_tables_and_frozen_weights():
    """Rows of an embedding are looked up one by one: not a matrix in Muon's sense."""
    frozen = nn.Linear(4, 4).requires_grad_(False)
    model = nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 4), frozen)
    optimizer = Optimizer(model, TrainingSection())
    kept = frozen.weight.clone()
    model(torch.arange(4)).square().mean().backward()
    optimizer.step(1e-2)
    assert torch.equal(frozen.weight, kept)
    assert [key for key in optimizer.tensors() if key.startswith("muon")] == ["muon.0.moment"]
    assert len(optimizer.parameters) == 3


@pytest.mark.parametrize(("ratio", "share"), [(0.01, 1), (0.05, 1), (0.2, 0.5), (0.8, 0.25)])
def test_large_students_learn_slower(ratio, share):
    assert rate_share(TrainingSection(tuned_ratio=0.05), ratio) == pytest.approx(share)
    assert rate_share(TrainingSection(), ratio) == 1
