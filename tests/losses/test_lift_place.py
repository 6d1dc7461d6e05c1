"""LIFT and PLACE against an independent oracle: numpy loops in float64, written from the equations."""

from typing import Any

import numpy as np
import pytest
import torch

from diffcompress.losses import lift, output_kd, place

LOSSES = {"lift": lift, "place": place, "place5": lambda s, t, **options: place(s, t, group_size=5, **options)}
EVERY_LOSS = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
REDUCTIONS = pytest.mark.parametrize("reduction", ["mean", "sum"])
NORMS = pytest.mark.parametrize("norm", ["l1", "squared", "relative", "explained"])
FINE = pytest.mark.parametrize("fine", ["squared", "l1", "relative"])
GATES = pytest.mark.parametrize("gate", ["global", "per_sample", "soft"])


def pair(shape=(3, 2, 7, 9), error=0.1, seed=0, dtype=torch.float64):
    """A student that is close enough to its teacher for a gate strictly between 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(shape, generator=generator, dtype=torch.float64)
    teacher = student + error * torch.randn(shape, generator=generator, dtype=torch.float64)
    return student.to(dtype), teacher.to(dtype)


def line(x, y):
    x_mean, y_mean = sum(x) / len(x), sum(y) / len(y)
    above = sum((p - x_mean) * (q - y_mean) for p, q in zip(x, y, strict=True))
    below = sum((p - x_mean) ** 2 for p in x)
    slope = above / below if len(x) > 1 else 1.0
    return slope, y_mean - slope * x_mean


def oracle(student, teacher, group_size, norm="l1", reduction="mean", fine="squared", gate="global", held=None):
    """(loss, held, terms): plain least squares; `held`: order, gate and coefficients of an earlier call, held fixed."""
    s, t = (np.asarray(x, dtype=np.float64).reshape(*x.shape[:2], -1) for x in (student, teacher))
    batch, channels, elements = s.shape
    rho = abs if norm == "l1" else (lambda x: x * x)
    slopes, intercepts, orders = [], [], []
    lines: list[Any] = []
    sizes: list[Any] = []
    coarse, off, square = np.zeros(batch), np.zeros(batch), np.zeros(batch)
    for i in range(batch):
        for c in range(channels):
            order = held["orders"][i * channels + c] if held else np.argsort((t[i, c] - s[i, c]) ** 2)
            orders.append(order)
            num_groups = max(1, elements // group_size)
            for g in range(num_groups):
                end = (g + 1) * group_size if g < num_groups - 1 else elements
                x, y = s[i, c, order[g * group_size : end]], t[i, c, order[g * group_size : end]]
                a, b = line(x, y)
                slopes.append(a)
                intercepts.append(b)
                off[i] += len(x) * (abs(a - 1) + abs(b))
                fixed_a, fixed_b = held["lines"][len(lines)] if held else (a, b)
                lines.append((a, b))
                rests = [fixed_a * x[k] + fixed_b - y[k] for k in range(len(x))]
                square[i] += sum(abs(rest) if fine == "l1" else rest**2 for rest in rests)
                if norm == "relative":
                    own = sum(map(abs, rests)) / len(x) if fine == "l1" else (sum(r * r for r in rests) / len(x)) ** 0.5
                    size = held["sizes"][len(sizes)] if held else own
                    sizes.append(size)
                    explained = sum(((a - 1) * p + b) ** 2 for p in x) / len(x)
                    coarse[i] += len(x) * ((explained + size**2) ** 0.5 - size)
                elif norm == "explained":
                    coarse[i] += sum(((a - 1) * p + b) ** 2 for p in x)
                else:
                    coarse[i] += len(x) * (rho(a - 1) + rho(b))
    per_sample = channels * elements
    coarse, off, residual = coarse / per_sample, off / per_sample, square / per_sample
    residual = np.sqrt(residual) if fine == "relative" else residual
    off = off if gate == "per_sample" else off.mean()
    weight = 1 / (1 + off) if gate == "soft" else 1 - np.minimum(1, off)
    weight = held["weight"] if held and "weight" in held else weight
    factor = per_sample if reduction == "sum" else 1
    shape = (batch, channels, -1)
    terms = {"coarse": factor * coarse.mean(), "fine": factor * residual.mean(), "fine_weight": np.mean(weight)}
    terms |= {"slope": np.reshape(slopes, shape), "intercept": np.reshape(intercepts, shape)}
    loss = factor * np.mean(coarse + weight * residual)
    return loss, {"orders": orders, "lines": lines, "sizes": sizes, "weight": weight}, terms


def differences(function, x, step=1e-6):
    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[index] += step
        down[index] -= step
        gradient[index] = (function(up) - function(down)) / (2 * step)
    return gradient


def gradient(loss, student, teacher, **options):
    student = student.clone().requires_grad_()
    loss(student, teacher, **options).loss.backward()
    return student.grad


@pytest.mark.parametrize("group_size", [None, 16, 5, 3])
@REDUCTIONS
@NORMS
@FINE
@GATES
def test_every_setting_agrees_with_the_oracle(group_size, reduction, norm, fine, gate):
    options = {"norm": norm, "reduction": reduction, "fine": fine, "gate": gate}
    student, teacher = pair(error=0.05)  # 63 elements: 16, 5 and 3 leave remainders of 15, 3 and 0
    if group_size is None:
        terms = lift(student, teacher, **options)
    else:
        terms = place(student, teacher, group_size=group_size, **options)
    loss, _, expected = oracle(student, teacher, group_size or 63, **options)
    assert terms.loss.item() == pytest.approx(loss, rel=1e-5)
    assert 0 < terms.fine_weight < 1
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(terms, name).detach(), value, rtol=1e-5, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("shape", [(2, 3, 40), (2, 3, 6, 7), (2, 3, 3, 4, 5)], ids=["1d", "2d", "video"])
@pytest.mark.parametrize("group_size", [1000, 16])
def test_any_number_of_spatial_axes(shape, group_size):
    student, teacher = pair(shape)
    loss, _, _ = oracle(student, teacher, group_size)
    assert place(student, teacher, group_size=group_size).loss.item() == pytest.approx(loss, rel=1e-5)


def test_shapes_of_the_terms():
    student, teacher = pair((2, 3, 5, 7), dtype=torch.float32)
    cases = ((lift(student, teacher), 1), (place(student, teacher), 2), (place(student, teacher, group_size=36), 1))
    for terms, groups in cases:
        assert terms.slope.shape == terms.intercept.shape == (2, 3, groups)
        assert all(getattr(terms, name).shape == () for name in ("loss", "coarse", "fine", "fine_weight"))
        assert terms.loss.dtype == torch.float32
        assert not (terms.slope.requires_grad)
        assert not (terms.fine_weight.requires_grad)


# Property 1
@EVERY_LOSS
@REDUCTIONS
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@NORMS
@FINE
def test_equal_outputs_cost_nothing(loss, reduction, dtype, norm, fine):
    output, _ = pair(dtype=dtype)
    output[0, 0], output[1, 1], output[2, 0] = 0.1, 0.0, 1e4
    student = output.clone().requires_grad_()
    terms = loss(student, output, reduction=reduction, norm=norm, fine=fine)
    terms.loss.backward()
    assert terms.loss.item() == 0
    assert terms.fine_weight.item() == 1
    assert (terms.slope == 1).all()
    assert (terms.intercept == 0).all()
    assert student.grad.isfinite().all()


# Property 2
@EVERY_LOSS
@pytest.mark.parametrize("k", [-3.0, 0.01, 0.5, 1.0, 2.0, 15.0])
def test_a_line_is_recovered(loss, k):
    student, _ = pair()
    terms = loss(student, k * student + 0.7)
    torch.testing.assert_close(terms.slope, torch.full_like(terms.slope, k), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(terms.intercept, torch.full_like(terms.intercept, 0.7), rtol=1e-4, atol=1e-4)
    assert terms.fine.item() < 1e-9


def test_a_line_is_recovered_in_float32():
    student, _ = pair((2, 3, 32, 32), dtype=torch.float32)
    for k, c in ((2.0, -1.0), (0.5, 3.0), (-1.0, 0.0), (12.0, 100.0)):
        terms = lift(student, k * student + c)
        torch.testing.assert_close(terms.slope, torch.full_like(terms.slope, k), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(terms.intercept, torch.full_like(terms.intercept, c), rtol=1e-5, atol=1e-5)


# Property 3
@EVERY_LOSS
def test_the_order_of_positions_does_not_matter(loss):
    student, teacher = (x.flatten(2) for x in pair())
    shuffle = torch.randperm(student.shape[-1])
    expected, terms = loss(student, teacher), loss(student[..., shuffle], teacher[..., shuffle])
    for name in expected._fields:
        torch.testing.assert_close(getattr(terms, name), getattr(expected, name), msg=name)
    assert loss(student, teacher[..., shuffle]).loss > 2 * expected.loss


@EVERY_LOSS
def test_samples_and_channels_meet_in_the_gate_alone(loss):
    student, teacher = pair()
    before = loss(student, teacher)
    student[1, 0] += torch.randn_like(student[1, 0])
    after = loss(student, teacher)
    untouched = torch.ones(3, 2, dtype=torch.bool)
    untouched[1, 0] = False
    assert torch.equal(after.slope[untouched], before.slope[untouched])
    assert torch.equal(after.intercept[untouched], before.intercept[untouched])
    assert not torch.equal(after.slope[1, 0], before.slope[1, 0])
    assert after.fine_weight < before.fine_weight


@EVERY_LOSS
def test_a_gate_per_sample_mixes_no_samples(loss):
    student, teacher = pair()
    expected = torch.stack([loss(student[i : i + 1], teacher[i : i + 1]).loss for i in range(3)]).mean()
    torch.testing.assert_close(loss(student, teacher, gate="per_sample").loss, expected)
    spoilt = student.clone()
    spoilt[1] += 5 * torch.randn_like(spoilt[1])
    for gate, equal in (("per_sample", True), ("global", False)):
        before, after = gradient(loss, student, teacher, gate=gate), gradient(loss, spoilt, teacher, gate=gate)
        assert torch.equal(before[0], after[0]) == equal


# Property 4
@NORMS
@REDUCTIONS
@FINE
def test_one_group_is_lift(norm, reduction, fine):
    options = {"norm": norm, "reduction": reduction, "fine": fine}
    student, teacher = pair()
    expected = lift(student, teacher, **options)
    for group_size in (32, 63, 64, 10**6):  # 32: 63 // 32 is one group too
        terms = place(student, teacher, group_size=group_size, **options)
        for name in expected._fields:
            torch.testing.assert_close(getattr(terms, name), getattr(expected, name), msg=name)
        place_gradient = gradient(place, student, teacher, group_size=group_size, **options)
        torch.testing.assert_close(place_gradient, gradient(lift, student, teacher, **options))


@REDUCTIONS
@pytest.mark.parametrize("norm", ["l1", "relative"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_groups_of_one_are_l1_output_distillation(reduction, norm, dtype):
    student, teacher = pair(dtype=dtype)
    student.requires_grad_()
    terms = place(student, teacher, group_size=1, reduction=reduction, norm=norm)
    expected = output_kd(student, teacher, norm="l1", reduction=reduction)
    torch.testing.assert_close(terms.loss, expected)
    assert (terms.slope == 1).all()
    (actual,), (wanted,) = (torch.autograd.grad(value, student) for value in (terms.loss, expected))
    torch.testing.assert_close(actual, wanted)


@EVERY_LOSS
def test_what_lines_explain_and_leave_is_the_squared_error(loss):
    student, teacher = pair()
    terms = loss(student, teacher, norm="explained")
    torch.testing.assert_close(terms.coarse + terms.fine, output_kd(student, teacher))
    one = place(student, teacher, group_size=1, norm="explained")
    torch.testing.assert_close(one.loss, output_kd(student, teacher))


@EVERY_LOSS
def test_each_sample_is_raised_to_the_power(loss):
    student, teacher = pair()
    student.requires_grad_()
    options = {"norm": "explained", "gate": "per_sample"}
    alone = torch.stack([loss(s[None], t[None], **options).loss for s, t in zip(student, teacher, strict=True)])
    whole = loss(student, teacher, power=0.75, **options)
    torch.testing.assert_close(whole.loss, alone.pow(0.75).mean())
    wanted, actual = (torch.autograd.grad(value, student)[0] for value in (alone.pow(0.75).mean(), whole.loss))
    torch.testing.assert_close(actual, wanted)
    plain = [output_kd(s[None], t[None]) for s, t in zip(student, teacher, strict=True)]
    torch.testing.assert_close(output_kd(student, teacher, power=0.75), torch.stack(plain).pow(0.75).mean())
    torch.testing.assert_close(output_kd(student, teacher, power=0.5), output_kd(student, teacher, norm="rms"))
    assert (gradient(loss, teacher, teacher, power=0.75, **options) == 0).all()


@EVERY_LOSS
def test_a_soft_gate_never_shuts(loss):
    """Shut, the published one leaves the coarse term alone with the student, whatever that makes of the rest."""
    _, teacher = pair()
    far, near = 0.05 * torch.randn_like(teacher), teacher + 1e-3 * torch.randn_like(teacher)
    assert loss(far, teacher).fine_weight == 0
    assert 0.02 < loss(far, teacher, gate="soft").fine_weight < 0.5
    torch.testing.assert_close(
        loss(near, teacher, gate="soft").fine_weight, loss(near, teacher).fine_weight, rtol=0, atol=1e-3
    )


# Property 5
@pytest.mark.parametrize("group_size", [1000, 5])
@NORMS
@REDUCTIONS
@FINE
@GATES
def test_gradients_hold_the_gate_still(group_size, norm, reduction, fine, gate):
    options = {"norm": norm, "reduction": reduction, "fine": fine, "gate": gate}
    student, teacher = pair((2, 2, 11), error=0.3, seed=1)
    s, t = student.numpy(), teacher.numpy()
    _, held, _ = oracle(s, t, group_size, **options)
    free_gate = {name: held[name] for name in ("orders", "lines", "sizes")}
    actual = gradient(place, student, teacher, group_size=group_size, **options).numpy()
    expected = differences(lambda x: oracle(x, t, group_size, held=held, **options)[0], s)
    with_gate = differences(lambda x: oracle(x, t, group_size, held=free_gate, **options)[0], s)
    scale = np.abs(expected).max()
    assert 0.05 < np.mean(held["weight"]) < 0.95
    assert np.abs(actual - expected).max() < 1e-4 * scale
    assert np.abs(with_gate - expected).max() > 1e-2 * scale  # so an attached gate would fail the line above


@EVERY_LOSS
def test_the_teacher_gets_no_gradient(loss):
    student, teacher = pair()
    teacher.requires_grad_()
    loss(student.requires_grad_(), teacher).loss.backward()
    assert teacher.grad is None


# Property 6
@EVERY_LOSS
@NORMS
@FINE
@pytest.mark.parametrize("spread", [0.0, 1e-12, 1e-4, 1e-3])
@pytest.mark.parametrize("mean", [0.0, 0.3])
def test_flat_students_meet_no_barrier(loss, norm, fine, spread, mean):
    student, teacher = pair((4, 2, 16, 16), error=1.0, dtype=torch.float32)
    for flat in (
        mean + spread * student,
        mean + spread * teacher,
    ):  # off every line, and on one of a slope in the thousands
        terms = loss(flat, teacher, norm=norm, fine=fine)
        assert 0 < terms.loss < (18**2 if norm == "squared" else 18)
        assert (terms.slope - 1).abs().max() < 18
        steepest = gradient(loss, flat, teacher, norm=norm, fine=fine, reduction="sum").abs().max()
        assert steepest < (2e6 if norm == "squared" else 4e5)  # the published eps: 4e7 and 1e10


@EVERY_LOSS
@pytest.mark.parametrize("offset", [0.0, 0.1, 5.0, 77777.7])
def test_groups_flat_on_both_sides(loss, offset):
    noise = torch.randn(2, 4, 2, 16, 16)
    for spread in (0.0, 1e-9):
        student, teacher = spread * noise + offset + torch.tensor([0.0, 5.37]).reshape(2, 1, 1, 1, 1)
        assert loss(student, teacher).loss.item() == pytest.approx((teacher - student).abs().mean().item(), rel=0.02)
        assert gradient(loss, student, teacher, reduction="sum").abs().max() < (1e4 if spread else 2)


def test_flat_groups_of_a_lively_channel_fall_back_to_the_identity():
    student, teacher = torch.randn(2, 2, 3, 512)
    student[..., :256] *= 1e-5
    teacher[..., :256] *= 1e-5
    teacher[..., 256:] = student[..., 256:] + 1
    terms = place(student, teacher)
    torch.testing.assert_close(terms.slope[..., :16], torch.ones(2, 3, 16), rtol=0, atol=1e-2)
    assert gradient(place, student, teacher, reduction="sum").abs().max() < 2000


@pytest.mark.parametrize("offset", [33.3, 1e4 + 0.1])
def test_rounding_of_large_constants_is_no_line(offset):
    student = torch.full((1, 1, 4096), offset)
    assert lift(student, student + 5.37).loss.item() == pytest.approx(5.37, rel=0.05)


def test_a_line_is_recovered_in_narrow_groups():
    """Sorted into groups of 16, 4,096 elements lie within thousandths of each other, and still do not count as flat."""
    student, _ = pair((1, 4, 64, 64))
    terms = place(student, 2 * student + 3)
    torch.testing.assert_close(terms.slope, torch.full_like(terms.slope, 2.0), rtol=1e-3, atol=1e-3)
    assert terms.fine.item() < 1e-9


@EVERY_LOSS
@NORMS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_huge_and_half_precision_values_stay_finite(loss, norm, dtype):
    student, teacher = pair((2, 2, 16, 16), error=1.0, dtype=torch.float32)
    for s, t in ((1e4, 1e4), (1e4, 1.0), (1.0, 1e4), (0.0, 1e4), (1e4, 0.0)):
        terms = loss((s * student).to(dtype), (t * teacher).to(dtype), norm=norm)
        assert all(value.isfinite().all() and value.dtype == torch.float32 for value in terms)
        assert terms.loss < (1e12 if norm in ("squared", "explained") else 1e6)
        assert gradient(loss, (s * student).to(dtype), (t * teacher).to(dtype), norm=norm).isfinite().all()


@EVERY_LOSS
def test_half_precision_is_computed_in_float32(loss):
    student, teacher = pair((2, 2, 16, 16), dtype=torch.bfloat16)
    expected = loss(student.float(), teacher.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = loss(student, teacher)
    assert torch.equal(terms.loss, expected.loss)


# Property 7
@EVERY_LOSS
@REDUCTIONS
@NORMS
def test_two_processes_see_the_loss_of_one(loss, reduction, norm):
    student, teacher = pair((4, 2, 7, 9))
    student[2:] += 0.5 * torch.randn_like(student[2:])
    expected, gradients = loss(student, teacher, reduction=reduction, norm=norm), []
    halves, distances, values = (slice(0, 2), slice(2, 4)), [], []

    def remember(value):
        distances.append(value)
        return value

    for half in halves:
        loss(student[half], teacher[half], reduce_mean=remember)
    assert distances[0].shape == ()
    assert abs(distances[0] - distances[1]) > 0.02
    for half in halves:
        options = {"reduction": reduction, "norm": norm, "reduce_mean": lambda value: sum(distances) / 2}
        terms = loss(student[half], teacher[half], **options)
        torch.testing.assert_close(terms.fine_weight, expected.fine_weight)
        values.append(terms.loss)
        gradients.append(gradient(loss, student[half], teacher[half], **options) / 2)
    torch.testing.assert_close(sum(values) / 2, expected.loss)
    torch.testing.assert_close(torch.cat(gradients), gradient(loss, student, teacher, reduction=reduction, norm=norm))


def test_the_coarse_term_can_be_annealed():
    student, teacher = pair()
    for weight in (0.0, 0.3, 1.0):
        terms = place(student, teacher, coarse_weight=weight)
        torch.testing.assert_close(terms.loss, weight * terms.coarse + terms.fine_weight * terms.fine)


@pytest.mark.parametrize("loss", [lift, place])
def test_bad_input_is_named(loss, unchecked):
    student, teacher = pair()
    for options in ({"norm": "l2"}, {"reduction": "none"}, {"fine": "cubic"}, {"gate": "local"}):
        with pytest.raises(ValueError, match=next(iter(options.values()))):
            loss(student, teacher, **options)
    with pytest.raises(ValueError, match=r"\(3, 2, 7, 9\).*\(3, 1, 7, 9\)"):
        loss(student, teacher[:, :1])
    with pytest.raises(ValueError, match="spatial"):
        loss(student[..., 0, 0], teacher[..., 0, 0])
    with pytest.raises(ValueError, match="empty"):
        loss(student[:0], teacher[:0])
    with pytest.raises(ValueError, match="-1"):
        place(student, teacher, group_size=-1)


@EVERY_LOSS
def test_nothing_waits_for_the_device(loss):
    """On the meta device any `.item()`, `bool(tensor)` or data-dependent shape raises."""
    student = torch.empty(2, 3, 7, 9, device="meta", requires_grad=True)
    for gate in ("global", "per_sample", "soft"):
        loss(student, torch.empty_like(student), fine="relative", gate=gate).loss.backward()
    assert student.grad.shape == student.shape
