"""Scores along axes, against all elements at once, on real models of every family."""

from __future__ import annotations

import types
from collections.abc import Mapping
from functools import partial

import psutil
import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.nn import functional

from diffcompress.errors import GradientError
from diffcompress.families import registry
from diffcompress.families.base import Family
from diffcompress.families.unet2d import FAMILY
from diffcompress.memory import SHARE, Need, gradients
from diffcompress.student.inherit import pick
from diffcompress.student.scores import AxisScores, Batch, magnitude_scores, rows_held, taylor_scores
from diffcompress.student.size import build
from tests import tiny
from tests.families.test_contract import FAMILIES, inputs_of, lively


def predict(family: Family, model: nn.Module, noisy: Tensor, timestep: Tensor, given: Mapping[str, Tensor]) -> Tensor:
    """As `LoadedPipeline.predict`."""
    dtype = next(model.parameters()).dtype
    given = {name: value.to(dtype) if value.is_floating_point() else value for name, value in given.items()}
    return family.predict(model, noisy.to(dtype), timestep, given)[:, : noisy.shape[1]].float()


def batches_of(family: Family, config: dict, number: int = 2, size: int = 2) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    batches: list[Batch] = []
    for _ in range(number):
        inputs = inputs_of(family, config, size)
        for name, value in inputs.items():
            if value.is_floating_point() and name != "timestep" and "mask" not in name:
                inputs[name] = torch.randn(value.shape, generator=generator)
        noisy, timestep = inputs.pop("noisy"), inputs.pop("timestep")
        batches.append((noisy, timestep, inputs, torch.randn(noisy.shape, generator=generator)))
    return batches


def elementwise(family: Family, model: nn.Module, batches: list[Batch]) -> dict[str, Tensor]:
    """The oracle: |weight * gradient| of every element, all gradients at once, in no way recomputed."""
    weights = dict(model.named_parameters())
    flags = {name: weight.requires_grad for name, weight in weights.items()}
    scores = {name: torch.zeros(value.shape, dtype=torch.float64) for name, value in model.state_dict().items()}
    model.requires_grad_(True)
    for noisy, timestep, given, target in batches:
        value = functional.mse_loss(predict(family, model, noisy, timestep, given), target)
        gradients = torch.autograd.grad(value, list(weights.values()), allow_unused=True)
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
            if gradient is not None:
                scores[name] += (weight.detach().double() * gradient.double()).abs()
    for name, weight in weights.items():
        weight.requires_grad_(flags[name])
    return scores


def assert_sums(scores: Mapping[str, AxisScores], elements: Mapping[str, Tensor]) -> None:
    assert list(scores) == list(elements)
    for name, value in elements.items():
        assert tuple(len(along) for along in scores[name].along) == tuple(value.shape)
        for axis, along in enumerate(scores[name].along):
            expected = value.movedim(axis, 0).flatten(1).sum(1) if value.dim() > 1 else value
            torch.testing.assert_close(along.double(), expected, rtol=1e-5, atol=1e-12)


@FAMILIES
def test_sums_are_those_of_all_elements(family: Family) -> None:
    config = family.tiny_config()
    teacher = lively(build(family, config, "cpu")).requires_grad_(False)
    batches = batches_of(family, config)
    expected = elementwise(family, teacher, batches)
    assert sum(value.sum() > 0 for value in expected.values()) > 0.9 * len(expected)
    assert_sums(taylor_scores(teacher, partial(predict, family, teacher), batches), expected)
    state = teacher.state_dict()
    assert_sums(magnitude_scores(state), {name: value.double().square() for name, value in state.items()})


def test_a_shared_weight_counts_once_and_an_unused_one_nothing() -> None:
    teacher = tiny.unet()
    first, second = (teacher.get_submodule(f"mid_block.resnets.{number}") for number in (0, 1))
    assert isinstance(first, ResnetBlock2D) and isinstance(second, ResnetBlock2D)
    second.conv1.weight = first.conv1.weight
    teacher.register_parameter("spare", nn.Parameter(torch.ones(3), requires_grad=False))
    batches = batches_of(FAMILY, tiny.UNET)
    scores = taylor_scores(teacher, partial(predict, FAMILY, teacher), batches)
    assert_sums(scores, elementwise(FAMILY, teacher, batches))
    assert scores["mid_block.resnets.0.conv1.weight"].along[0].min() > 0
    assert scores["mid_block.resnets.1.conv1.weight"].along[0].max() == 0
    assert scores["spare"].along[0].tolist() == [0, 0, 0]


def stops_backward(_module: nn.Module, _inputs: object, output: Tensor) -> None:
    output.register_hook(lambda _gradient: 1 / 0)


def test_processes_with_batches_of_their_own_rank_as_one_with_all() -> None:
    """Two, of which each sums what both have found."""
    teacher, batches = tiny.unet(), batches_of(FAMILY, tiny.UNET)
    found: list[Tensor] = []

    def keep(own: Tensor) -> Tensor:
        found.append(own.clone())
        return own

    for own in (batches[::2], batches[1::2]):
        taylor_scores(teacher, partial(predict, FAMILY, teacher), own, total=keep)
    both = found[0] + found[1]
    together = taylor_scores(teacher, partial(predict, FAMILY, teacher), batches[::2], total=lambda _own: both)
    alone = taylor_scores(teacher, partial(predict, FAMILY, teacher), batches)
    assert list(together) == list(alone)
    for name, score in alone.items():
        torch.testing.assert_close(together[name].along, score.along)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("recomputed", [False, True])
def test_the_teacher_is_left_as_it_was(fails: bool, recomputed: bool) -> None:
    teacher = tiny.unet()
    if recomputed:
        teacher.enable_gradient_checkpointing()
    teacher.mid_block.train()
    teacher.conv_in.weight.requires_grad_(True)
    teacher.conv_in.weight.grad = kept = torch.ones_like(teacher.conv_in.weight)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    modes = [module.training for module in teacher.modules()]
    batches = batches_of(FAMILY, tiny.UNET)
    if fails:
        batches[1] = (*batches[1][:3], torch.full_like(batches[1][3], torch.nan))
        with pytest.raises(GradientError, match="not finite") as caught:
            taylor_scores(teacher, partial(predict, FAMILY, teacher), batches)
        assert "student.importance=magnitude" in caught.value.hint
        handle = teacher.mid_block.register_forward_hook(stops_backward)
        with pytest.raises(ZeroDivisionError):  # in the middle of a backward pass
            taylor_scores(teacher, partial(predict, FAMILY, teacher), batches)
        handle.remove()
    else:
        taylor_scores(teacher, partial(predict, FAMILY, teacher), batches)
    assert [name for name, weight in teacher.named_parameters() if weight.requires_grad] == ["conv_in.weight"]
    assert [name for name, weight in teacher.named_parameters() if weight.grad is not None] == ["conv_in.weight"]
    assert teacher.conv_in.weight.grad is kept and kept.eq(1).all()
    assert modes == [module.training for module in teacher.modules()]
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert teacher.is_gradient_checkpointing == recomputed
    teacher.requires_grad_(True)
    predict(FAMILY, teacher, *batches[0][:3]).sum().backward()
    assert all(weight.grad is not None for weight in teacher.parameters())  # no hook is left to take them


def test_one_gradient_is_alive_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    family = registry.find("SD3Transformer2DModel")
    config = family.tiny_config()
    teacher = lively(build(family, config, "cpu")).requires_grad_(False)
    alive = []
    of = AxisScores.__dict__["of"].__func__

    def counted(cls: type[AxisScores], elements: Tensor) -> AxisScores:
        alive.append(sum(weight.grad is not None for weight in teacher.parameters()))
        return of(cls, elements)

    monkeypatch.setattr(AxisScores, "of", classmethod(counted))
    taylor_scores(teacher, partial(predict, family, teacher), batches_of(family, config))
    assert len(alive) > 100 and max(alive) == 1


def test_a_batch_is_as_large_as_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = tiny.unet()
    (batch,) = batches_of(FAMILY, tiny.UNET, 1, 8)
    call = partial(predict, FAMILY, teacher)

    def held(free: float) -> int:
        monkeypatch.setattr(psutil, "virtual_memory", lambda: types.SimpleNamespace(available=int(free)))
        return rows_held(teacher, call, batch)

    def backward(rows: int) -> None:
        noisy, timestep, given, target = batch
        noisy, timestep, target = (part[:rows] for part in (noisy, timestep, target))
        functional.mse_loss(call(noisy, timestep, given), target).backward()

    none, some, more = held(0), held(10**7), held(2 * 10**7)
    teacher.requires_grad_(True)
    with gradients(teacher):
        need = Need.of(backward, torch.device("cpu"))  # nothing is recomputed
    teacher.requires_grad_(False)
    assert none == 1
    assert 0.5 < (more - some) / (SHARE * 10**7 / need.row) < 2
    assert not any(weight.requires_grad or weight.grad is not None for weight in teacher.parameters())


def faint(prediction: Tensor, target: Tensor) -> Tensor:
    """So small that float16 rounds most of its gradients to zero, as those of a mean over a large image."""
    return functional.mse_loss(prediction, target) / 1000


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_ranks_as_full_precision_does(dtype: torch.dtype) -> None:
    family = registry.find("SD3Transformer2DModel")
    config = family.tiny_config()
    teacher = lively(build(family, config, "cpu")).requires_grad_(False)
    batches: list[Batch] = [
        (n, t, {k: v[:, :16] for k, v in c.items()}, g) for n, t, c, g in batches_of(family, config, 1, 16)
    ]
    full = taylor_scores(teacher, partial(predict, family, teacher), batches, faint)
    half = taylor_scores(nn.Module.to(teacher, dtype=dtype), partial(predict, family, teacher), batches, faint)
    assert all(along.dtype == torch.float32 for score in half.values() for along in score.along)
    pairs = [(one, two) for name, score in full.items() for one, two in zip(score.along, half[name].along, strict=True)]
    off = torch.stack([(one - two).norm() / one.norm() for one, two in pairs if one.any()])
    assert off.median() < 0.1


def test_taylor_drops_a_channel_that_is_large_but_does_nothing() -> None:
    teacher = tiny.unet()
    hidden = teacher.get_submodule("mid_block.resnets.0")
    assert isinstance(hidden, ResnetBlock2D)
    with torch.no_grad():
        hidden.norm2.weight[5] = 20  # loud
        hidden.conv2.weight[:, 5] = 0  # but unheard
    rules = FAMILY.tensor_rules(tiny.UNET, {**tiny.UNET, "block_out_channels": (8, 24)})
    noisy = torch.randn(4, 1, 8, 8)
    batches: list[Batch] = [(noisy, torch.tensor([1, 200, 500, 900]), {}, torch.randn(4, 1, 8, 8))] * 2
    scores = taylor_scores(teacher, partial(predict, FAMILY, teacher), batches)
    name = "mid_block.resnets.0.hidden"
    assert 5 in pick(rules, magnitude_scores(teacher.state_dict()))[name]
    assert 5 not in pick(rules, scores)[name]
