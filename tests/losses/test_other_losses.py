"""The baselines and auxiliary losses, and their sum."""

import math
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from diffcompress.losses import (
    Adapters,
    combine,
    diffusion,
    feature_kd,
    last_of_each_resolution,
    lift,
    output_kd,
    relative_feature_kd,
    variance_kd,
)
from diffcompress.losses.terms import LossTerms

STUDENT, TEACHER = torch.randn(2, 3, 2, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
ERROR = (STUDENT - TEACHER).flatten(1)


@pytest.mark.parametrize(
    ("norm", "expected"),
    [("squared", ERROR.square().mean()), ("l1", ERROR.abs().mean()), ("rms", ERROR.square().mean(1).sqrt().mean())],
)
def test_output_kd(norm, expected):
    torch.testing.assert_close(output_kd(STUDENT, TEACHER, norm=norm), expected)
    torch.testing.assert_close(output_kd(STUDENT, TEACHER, norm=norm, reduction="sum"), 40 * expected)
    student, teacher = STUDENT.clone().requires_grad_(), STUDENT.clone().requires_grad_()
    loss = output_kd(student, teacher, norm=norm)
    loss.backward()
    assert loss.item() == 0
    assert teacher.grad is None
    assert (student.grad == 0).all()


def test_output_kd_is_computed_in_float32():
    student, teacher = STUDENT.bfloat16(), TEACHER.bfloat16()
    loss = output_kd(student, teacher, norm="rms")
    assert loss.dtype == torch.float32
    assert torch.equal(loss, output_kd(student.float(), teacher.float(), norm="rms"))
    assert output_kd(torch.full((1, 1, 4), math.nan), torch.zeros(1, 1, 4), norm="rms").isnan()


def test_bad_input_is_named(unchecked):
    with pytest.raises(ValueError, match="l3"):
        output_kd(STUDENT, TEACHER, norm=cast(Any, "l3"))
    for loss in (output_kd, diffusion, variance_kd):
        with pytest.raises(ValueError, match="median"):
            loss(STUDENT, TEACHER, reduction=cast(Any, "median"))
        with pytest.raises(ValueError, match="shape"):
            loss(STUDENT, TEACHER[:1])
    with pytest.raises(ValueError, match="weight"):
        diffusion(STUDENT, TEACHER, weight=torch.ones(3, 1))


def test_diffusion_is_weighted_by_sample():
    per_sample = ERROR.square().mean(1)
    weight = torch.tensor([1.0, 0.0, 4.0])
    torch.testing.assert_close(diffusion(STUDENT, TEACHER), per_sample.mean())
    expected = (per_sample[0] + 4 * per_sample[2]) / 3
    torch.testing.assert_close(diffusion(STUDENT, TEACHER, weight), expected)
    torch.testing.assert_close(diffusion(STUDENT, TEACHER, weight, reduction="sum"), 40 * expected)


def test_variance_follows_the_teacher():
    torch.testing.assert_close(variance_kd(STUDENT, TEACHER), ERROR.square().mean())


def test_feature_kd_adds_blocks():
    student = {"down": STUDENT, "mid": STUDENT[:, :1]}
    teacher = {"mid": TEACHER[:, :1], "down": TEACHER}  # names match blocks, not order
    mid = ERROR[:, :20].square()
    torch.testing.assert_close(feature_kd(student, teacher), ERROR.square().mean() + mid.mean())
    total = ERROR.square().sum(1).mean() + mid.sum(1).mean()
    torch.testing.assert_close(feature_kd(student, teacher, reduction="sum"), total)
    torch.testing.assert_close(feature_kd([STUDENT], [TEACHER]), ERROR.square().mean())


def test_feature_kd_leaves_out_massive_activations():
    student, teacher = STUDENT.clone().requires_grad_(), TEACHER.clone()
    teacher[0, 0, 0, 0] = 1e3
    mask = torch.ones(3, 40, dtype=torch.bool)
    for i in range(3):
        row = teacher[i].flatten()
        mask[i] = (row - row.mean()).abs() <= 2 * row.std(correction=0)
    assert 0 < (~mask).sum() < 20
    assert not mask[0, 0]
    error = (student.detach() - teacher).flatten(1).square() * mask
    loss = feature_kd([student], [teacher], mask_beyond=2.0)
    torch.testing.assert_close(loss, error.sum() / mask.sum())
    summed = feature_kd([student], [teacher], mask_beyond=2.0, reduction="sum")
    torch.testing.assert_close(summed, error.sum(1).mean())
    loss.backward()
    assert torch.equal(student.grad.flatten(1) != 0, mask)
    constant = torch.full((2, 3, 4), 7.0)
    assert feature_kd([constant + 1], [constant], mask_beyond=2.0).item() == 1


def test_feature_kd_names_bad_input():
    with pytest.raises(ValueError, match="mid"):
        feature_kd({"mid": STUDENT}, {"down": TEACHER})
    with pytest.raises(ValueError, match="2 student blocks"):
        feature_kd([STUDENT, STUDENT], [TEACHER])
    with pytest.raises(ValueError, match="names"):
        feature_kd(cast(Any, {"mid": STUDENT}), [TEACHER])
    with pytest.raises(ValueError, match="at least one"):
        feature_kd([], [])
    with pytest.raises(ValueError, match=r"-2\.0"):
        feature_kd([STUDENT], [TEACHER], mask_beyond=-2.0)


def relative_error(student, teacher):
    """Of one sample of one block, element by element; elements more than five deviations off are left out."""
    theirs = teacher.flatten().tolist()
    mean = sum(theirs) / len(theirs)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in theirs) / len(theirs))
    pairs = [(s, t) for s, t in zip(student.flatten().tolist(), theirs, strict=True) if abs(t - mean) <= 5 * deviation]
    return sum((s - t) ** 2 for s, t in pairs) / sum(t**2 for _, t in pairs)


def test_relative_feature_kd():
    teacher = TEACHER.clone()
    teacher[1, 0, 0, 0] = 1e4
    blocks = [(STUDENT, teacher), (STUDENT[:, :1] - 3, teacher[:, 1:] * 7)]
    expected = [sum(relative_error(s[i], t[i]) for i in range(3)) / 3 for s, t in blocks]
    student, given = [s for s, _ in blocks], [t for _, t in blocks]
    torch.testing.assert_close(relative_feature_kd(student, given).item(), sum(expected) / 2)
    named = relative_feature_kd({"a": student[0], "b": student[1]}, {"b": given[1], "a": given[0]})
    torch.testing.assert_close(named.item(), sum(expected) / 2)


def test_relative_feature_kd_knows_no_scale():
    """Neither of a block nor of a sample, and nothing of what is massive in the teacher."""
    teacher = TEACHER.clone()
    teacher[1, 0, 0, 0] = 1e4
    scale = torch.tensor([1e-3, 1.0, 1e3]).view(3, 1, 1, 1)
    loss = relative_feature_kd([STUDENT], [teacher])
    torch.testing.assert_close(relative_feature_kd([STUDENT * scale], [teacher * scale]), loss)
    louder = STUDENT.clone().requires_grad_()
    louder.data[1, 0, 0, 0] = 2e4
    again = relative_feature_kd([louder], [teacher])
    torch.testing.assert_close(again, loss)
    again.backward()
    assert (louder.grad == 0).flatten().nonzero().tolist() == [[40]]


def test_relative_feature_kd_at_its_ends():
    student = STUDENT.clone().requires_grad_()
    loss = relative_feature_kd([student, student], [STUDENT, torch.zeros_like(STUDENT)])
    loss.backward()
    assert loss.item() == 0
    assert (student.grad == 0).all()
    assert relative_feature_kd([0 * TEACHER], [TEACHER]).item() == 1
    assert relative_feature_kd([STUDENT.bfloat16()], [TEACHER.bfloat16()]).dtype == torch.float32
    with pytest.raises(ValueError, match="shape"):
        relative_feature_kd([STUDENT], [TEACHER[:, :1]])


def test_features_are_compared_where_a_resolution_ends():
    unet = [torch.empty(1, 2, side, side) for side in (8, 4, 2, 2, 2, 4, 8)]
    assert last_of_each_resolution(unet) == [4, 5, 6]
    assert last_of_each_resolution([torch.empty(1, 2, 9)] * 3) == [2]


@pytest.mark.parametrize("spatial", [(5,), (4, 5), (2, 3, 4)])
def test_adapters_are_one_by_one_convolutions(spatial):
    adapters = Adapters([3, 4], [8, 4])
    narrow, equal = torch.randn(2, 3, *spatial), torch.randn(2, 4, *spatial)
    wide, same = adapters([narrow, equal])
    first = adapters.maps[0]
    assert isinstance(first, torch.nn.Linear)
    kernel = first.weight.reshape(8, 3, *(1 for _ in spatial))
    convolution = (torch.conv1d, torch.conv2d, torch.conv3d)[len(spatial) - 1]
    torch.testing.assert_close(wide, convolution(narrow, kernel, first.bias))
    assert same is equal
    assert sum(p.numel() for p in adapters.parameters()) == 3 * 8 + 8


def test_adapters_keep_names_and_take_tokens():
    adapters = Adapters([3, 4], [8, 4], channel_axis=-1)
    wide = adapters({"b": torch.randn(2, 10, 3), "a": torch.randn(2, 10, 4)})
    assert {name: block.shape[-1] for name, block in wide.items()} == {"b": 8, "a": 4}
    with pytest.raises(ValueError, match="1 block outputs for 2"):
        adapters([torch.randn(2, 10, 3)])
    with pytest.raises(ValueError, match="1 student blocks for 2"):
        Adapters([3], [3, 4])


def test_combine_weighs_and_logs():
    student = STUDENT.clone().requires_grad_()
    lines, plain = lift(student, TEACHER), output_kd(student, TEACHER)
    terms: dict[str, LossTerms | Tensor] = {"lift": lines, "output_kd": plain, "diffusion": diffusion(student, TEACHER)}
    total, log = combine(terms, {"lift": 0.5, "diffusion": 0.0, "feature_kd": 0.0})
    torch.testing.assert_close(total, 0.5 * lines.loss + plain)
    assert set(log) == {"loss", "coarse", "fine", "fine_weight", "slope", "intercept", "output_kd", "diffusion"}
    assert all(value.shape == () and not value.requires_grad for value in log.values())
    assert log["loss"] == total
    assert log["intercept"] == lines.intercept.abs().mean()
    total.backward()
    assert student.grad.abs().sum() > 0


def test_combine_refuses_what_would_train_something_else():
    loss = output_kd(STUDENT, TEACHER)
    with pytest.raises(ValueError, match="featur_kd"):
        combine({"output_kd": loss}, {"featur_kd": 1.0})
    with pytest.raises(ValueError, match="no loss"):
        combine({})
    with pytest.raises(ValueError, match="weight 0"):
        combine({"output_kd": loss}, {"output_kd": 0.0})
    with pytest.raises(ValueError, match="at most one"):
        combine({"lift": lift(STUDENT, TEACHER), "place": lift(STUDENT, TEACHER)})


def test_a_term_of_weight_zero_cannot_spoil_the_total():
    terms = {"output_kd": output_kd(STUDENT, TEACHER), "diffusion": torch.tensor(math.nan)}
    total, _ = combine(terms, {"diffusion": 0.0})
    assert total.isfinite()
