"""The closed-form start on real U-Nets: what it must leave alone, and what it must bring back."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from diffcompress.families.base import IndexSet, TensorRule, TensorRules
from diffcompress.families.unet2d import FAMILY
from diffcompress.pipeline.load import load
from diffcompress.recipe import StudentSection
from diffcompress.sources.resolve import resolve
from diffcompress.student import refit as refitting
from diffcompress.student.inherit import inherit, pick, start_student
from diffcompress.student.plan import plan
from diffcompress.student.refit import Conversion, refit
from diffcompress.student.scores import magnitude_scores
from tests import tiny


def _batch(size: int, side: int = 28, seed: int = 0) -> tuple[Tensor, Tensor]:
    own = torch.Generator().manual_seed(seed)
    return torch.randn(size, 1, side, side, generator=own), torch.randint(0, 1000, (size,), generator=own)


def _caller(noisy: Tensor, timestep: Tensor):
    return lambda model: FAMILY.predict(model, noisy, timestep, {})


def _started(teacher, config, ratio: float):
    """A student of `ratio` inherited by magnitude, its rules and picks."""
    found = plan(FAMILY, config, ratio=ratio)
    rules, state = found.rules(FAMILY), teacher.state_dict()
    student = start_student(FAMILY, found, StudentSection(), state)
    return student.eval(), rules, pick(rules, magnitude_scores(state))


def test_a_student_of_the_teachers_shape_stays_the_teacher():
    teacher = tiny.unet(tiny.UNET)
    rules, student = FAMILY.tensor_rules(tiny.UNET, tiny.UNET), copy.deepcopy(teacher)
    assert (
        refit(student, teacher, rules, pick(rules, magnitude_scores(teacher.state_dict())), _caller(*_batch(8, 8))) > 20
    )
    noisy, timestep = _batch(4, 8, seed=1)
    with torch.no_grad():
        ours, theirs = (FAMILY.predict(model, noisy, timestep, {}) for model in (student, teacher))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("ratio", [0.25, 0.05])
def test_inputs_that_it_was_not_fitted_on_are_predicted_better(ratio):
    """On the embedded teacher: random weights have nothing to make up from."""
    teacher = load(resolve("demo")).denoiser
    student, rules, kept = _started(teacher, teacher.config, ratio)
    noisy, timestep = _batch(16, seed=1)
    with torch.no_grad():
        target = FAMILY.predict(teacher, noisy, timestep, {})
        before = (FAMILY.predict(student, noisy, timestep, {}) - target).square().mean()
        refit(student, teacher, rules, kept, _caller(*_batch(48)))
        after = (FAMILY.predict(student, noisy, timestep, {}) - target).square().mean()
    assert after < before / 2


def test_it_is_repeatable_and_leaves_the_teacher_and_the_mode_alone():
    teacher = tiny.unet(tiny.DEMO)
    before = copy.deepcopy(teacher.state_dict())
    found = []
    for _ in range(2):
        student, rules, kept = _started(teacher, tiny.DEMO, 0.1)
        refit(student.train(), teacher, rules, kept, _caller(*_batch(4)))
        assert student.training
        found.append(student.state_dict())
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in teacher.modules())


def test_few_rows_of_many_are_enough(monkeypatch):
    """Of a convolution too, whose windows are cut at the same positions as its teacher's outputs."""
    teacher = load(resolve("demo")).denoiser
    noisy, timestep = _batch(16, seed=1)
    errors = []
    for rows in (16_384, 3_000):
        monkeypatch.setattr(refitting, "MOST_ROWS", rows)
        student, rules, kept = _started(teacher, teacher.config, 0.1)
        with torch.no_grad():
            refit(student, teacher, rules, kept, _caller(*_batch(48)))
            errors.append(
                (FAMILY.predict(student, noisy, timestep, {}) - FAMILY.predict(teacher, noisy, timestep, {}))
                .square()
                .mean()
            )
    assert errors[1] < 2 * errors[0]


class _Two(nn.Module):
    """A linear layer without and a convolution with groups."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, width, bias=False), nn.Conv2d(width, width, 3, padding=1, groups=width)

    def forward(self, given: Tensor) -> Tensor:
        return self.second(self.first(given.movedim(1, -1)).movedim(-1, 1))


def test_a_layer_without_a_bias_is_fitted_through_the_origin_and_grouped_convolutions_stay():
    torch.manual_seed(0)
    teacher, student = _Two(4), _Two(2)
    sets = {"width": IndexSet("width", 4, 2)}
    rules = TensorRules(
        sets,
        (
            TensorRule("first.weight", "first.weight", (("width",), ()), (2, 3)),
            TensorRule("second.weight", "second.weight", (("width",), (), (), ()), (2, 1, 3, 3)),
            TensorRule("second.bias", "second.bias", (("width",),), (2,)),
        ),
    )
    before = copy.deepcopy(student.second.state_dict())
    given = torch.randn(4, 3, 5, 5) + 3
    assert refit(student, teacher, rules, {"width": torch.tensor([1, 3])}, lambda model: model(given)) == 1
    torch.testing.assert_close(student.first.weight, teacher.first.weight[[1, 3]], atol=1e-3, rtol=1e-3)
    assert all(torch.equal(value, before[name]) for name, value in student.second.state_dict().items())


@pytest.mark.parametrize(("count", "ridge"), [(9, 1e-3), (200, 1e-4)])
def test_a_layer_is_the_ridge_regression_of_its_teachers_outputs(count, ridge):
    """Towards what it was, in closed form; ten times the ridge below four rows an input."""
    torch.manual_seed(0)
    theirs, ours = nn.Linear(3, 4), nn.Linear(3, 2)
    teacher, student = nn.Sequential(theirs), nn.Sequential(ours)
    rules = TensorRules(
        {"width": IndexSet("width", 4, 2)},
        (
            TensorRule("0.weight", "0.weight", (("width",), ()), (2, 3), scale=3.0),
            TensorRule("0.bias", "0.bias", (("width",),), (2,), scale=3.0),
        ),
    )
    given = torch.randn(count, 3) + 2
    with torch.no_grad():
        given[:, 2] = given[:, 1] + 1e-2 * given[:, 2]  # two inputs nearly alike: the ridge has a say
        x, y = given.double(), 3.0 * teacher(given)[:, [0, 3]].double()
    centred = x - x.mean(0)
    scatter = centred.T @ centred / count
    penalty = ridge * scatter.diagonal().mean() * torch.eye(3, dtype=torch.float64)
    before = ours.weight.detach().double()
    right = centred.T @ (y - y.mean(0)) / count + penalty @ before.T
    weight = torch.linalg.solve(scatter + penalty, right).T
    assert refit(student, teacher, rules, {"width": torch.tensor([0, 3])}, lambda model: model(given)) == 1
    assert (weight - 3.0 * theirs.weight[[0, 3]]).abs().max() > 1e-2  # the ridge did have a say
    torch.testing.assert_close(ours.weight.double(), weight, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(student[0].bias.double(), y.mean(0) - weight @ x.mean(0), rtol=1e-4, atol=1e-4)


def test_what_is_inherited_is_where_it_starts_from():
    """Without rows to learn from the ridge keeps the inherited weights."""
    teacher = tiny.unet(tiny.UNET)
    rules = plan(FAMILY, tiny.UNET, ratio=0.3).rules(FAMILY)
    student, _, kept = _started(teacher, tiny.UNET, 0.3)
    blank = torch.zeros(2, 1, 8, 8), torch.zeros(2, dtype=torch.long)
    refit(student, teacher, rules, kept, _caller(*blank))
    name = "time_embedding.linear_2.weight"
    torch.testing.assert_close(student.state_dict()[name], inherit(rules, teacher.state_dict())[name])


class _InOtherTerms(nn.Conv2d):
    """A last layer that says scale * (what a convolution says) + offset of its first channel, and two more plainly."""

    scale, offset = torch.ones(1), torch.zeros(1)

    def forward(self, given: Tensor) -> Tensor:
        plain = super().forward(given)
        return torch.cat([self.scale * plain[:, :1] + self.offset, plain[:, 1:]], 1)


def test_a_student_that_predicts_another_quantity_is_fitted_to_what_that_means():
    """Scales from one to a hundredth, as of v in terms of noise; channels behind the prediction mean the same."""
    torch.manual_seed(0)
    last = _InOtherTerms(3, 3, 3)
    teacher, student = nn.ModuleDict({"last": last}), nn.ModuleDict({"last": nn.Conv2d(3, 3, 3)})
    scale, offset = torch.logspace(0, -2, 16).view(-1, 1, 1, 1).expand(-1, 1, 6, 6), torch.randn(16, 1, 6, 6)
    last.scale, last.offset = scale, offset
    rules = TensorRules(
        {},
        (
            TensorRule("last.weight", "last.weight", ((), (), (), ()), (3, 3, 3, 3)),
            TensorRule("last.bias", "last.bias", ((),), (3,)),
        ),
    )
    given = torch.randn(16, 3, 8, 8)
    conversion = Conversion("last", scale, offset)
    assert refit(student, teacher, rules, {}, lambda model: model.get_submodule("last")(given), conversion) == 1
    for name in ("weight", "bias"):
        found, meant = getattr(student.last, name), getattr(teacher.last, name)
        torch.testing.assert_close(found, meant, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("ratio", [0.25, 0.05])
def test_a_student_that_predicts_v_starts_near_its_teacher(ratio):
    """On the embedded teacher: weights that are fitted to its noise and read as v are off by three times as much."""
    pipeline = load(resolve("demo"))
    teacher, own = pipeline.denoiser, pipeline.noise.predicting("v_prediction")
    noisy, timestep = _batch(48)
    offset, whole = (
        own.converted(fill(noisy), noisy, timestep, pipeline.noise) for fill in (torch.zeros_like, torch.ones_like)
    )
    held, at = _batch(16, seed=1)
    with torch.no_grad():
        target = FAMILY.predict(teacher, held, at, {})
        errors = []
        for conversion in (None, Conversion("conv_out", whole - offset, offset)):
            student, rules, kept = _started(teacher, teacher.config, ratio)
            refit(student, teacher, rules, kept, _caller(noisy, timestep), conversion)
            told = own.converted(FAMILY.predict(student, held, at, {}), held, at, pipeline.noise)
            errors.append((told - target).square().mean())
    assert errors[1] < errors[0] / 3
