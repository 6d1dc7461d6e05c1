"""The start of an inherited student, in closed form: every layer is fitted anew to what its teacher's layer says.

A student keeps a few of its teacher's channels, so that every sum that a layer computes lacks most of its terms. Linear
least squares makes up for what the channels that are left can tell of those that went: layer by layer in the order of
the forward pass, so that each layer is fitted to the inputs that the layers before it, already fitted, give it. The
published pruning of channels works so (ThiNet, arXiv 1707.06342, one layer at a time); here rows are positions of a few
noisy samples at all noise levels, and the ridge pulls towards the inherited weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from diffcompress.families.base import TensorRule, TensorRules
from diffcompress.noise import streams
from diffcompress.student.inherit import NEW

# Positions that a layer is fitted on at most, and bytes that the teacher's outputs there may take in all.
MOST_ROWS, MOST_BYTES = 16_384, 2 << 30
# A layer of more inputs keeps its inherited weights: normal equations grow with their square.
MOST_INPUTS = 4_608
# Of the mean of the inputs' variances; ten times as much where there are few rows.
RIDGE, FEW = 1e-4, 4


@dataclass(frozen=True)
class _Layer:
    """A student's layer to fit: its teacher's by name, the kept of that one's outputs (None: all), and their factor."""

    module: nn.Linear | nn.Conv2d
    source: str
    outputs: Tensor | None
    scale: float


@dataclass(frozen=True)
class Conversion:
    """Of a student that predicts another quantity: its teacher's prediction is scale * its own + offset.

    layer: the one whose output the prediction is, perhaps with more channels behind; scale, offset `[B, C, H, W]`.
    """

    layer: str
    scale: Tensor
    offset: Tensor


@torch.no_grad()
def refit(
    student: nn.Module,
    teacher: nn.Module,
    rules: TensorRules,
    kept: Mapping[str, Tensor],
    call: Callable[[nn.Module], object],
    conversion: Conversion | None = None,
) -> int:
    """Fit the linear and convolution layers of `student`, on the teacher's device, in place; returns how many.

    rules, kept: what it was inherited by (`pick`). call: runs a model on one batch, the same for both models; its
    samples should be of all noise levels. conversion: for a student that predicts another quantity; its errors count
    in the teacher's terms. Layers that the teacher has no counterpart of, grouped or dilated convolutions, and layers
    of more than MOST_INPUTS inputs keep their weights.
    """
    layers = _layers(student, rules, kept)
    width = sum(layer.module.weight.shape[0] for layer in layers.values())
    rows = min(MOST_ROWS, MOST_BYTES // (4 * max(width, 1)))
    wanted = _outputs(teacher, layers, rows, call)
    training, fitted = student.training, set[str]()

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def fit(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if name not in fitted and layers[name].source in wanted:  # a layer that is called twice is fitted once
                fitted.add(name)
                own = conversion if conversion is not None and conversion.layer == name else None
                _fit(layers[name], inputs[0], wanted[layers[name].source], rows, own)

        return fit

    handles = [layer.module.register_forward_pre_hook(hook(name)) for name, layer in layers.items()]
    try:
        call(student.eval())
    finally:
        for handle in handles:
            handle.remove()
        student.train(training)
    return len(fitted)


def _layers(student: nn.Module, rules: TensorRules, kept: Mapping[str, Tensor]) -> dict[str, _Layer]:
    by_name = {rule.student: rule for rule in rules.rules}
    found = {}
    for name, module in student.named_modules():
        rule = by_name.get(f"{name}.weight")
        if rule is None or rule.teacher is None or not _can_be_fitted(module, rule, rules):
            continue
        source = rule.teacher.removesuffix(".weight")
        found[name] = _Layer(module, source, _kept_outputs(rule, rules, kept), rule.scale)  # type: ignore[arg-type]
    return found


def _can_be_fitted(module: nn.Module, rule: TensorRule, rules: TensorRules) -> bool:
    if any(rules.sets[name].mixture is not None for name in rule.axes[0]):
        return False
    if isinstance(module, nn.Conv2d):
        plain = module.groups == 1 and module.dilation == (1, 1) and module.padding_mode == "zeros"
        if not plain or isinstance(module.padding, str):
            return False
    elif not isinstance(module, nn.Linear):
        return False
    return module.weight[0].numel() <= MOST_INPUTS


def _kept_outputs(rule: TensorRule, rules: TensorRules, kept: Mapping[str, Tensor]) -> Tensor | None:
    """Outputs of the teacher's layer that are kept, sets laid end to end, NEW where it has none such; None: all."""
    if not rule.axes[0]:
        return None
    parts, offset = [], 0
    for name in rule.axes[0]:
        own = kept[name].cpu()
        parts.append(torch.where(own == NEW, NEW, own + offset))
        offset += rules.sets[name].teacher_size
    return torch.cat(parts)


def _outputs(
    teacher: nn.Module, layers: Mapping[str, _Layer], rows: int, call: Callable[[nn.Module], object]
) -> dict[str, Tensor]:
    """What each of the teacher's layers that is needed says `[rows, outputs]` when it is first called."""
    found: dict[str, Tensor] = {}

    def hook(source: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def keep(module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if source not in found:
                flat = _positions(output, isinstance(module, nn.Conv2d))
                found[source] = flat[_rows(len(flat), rows).to(flat.device)].float()

        return keep

    sources = {layer.source for layer in layers.values()}
    handles = [teacher.get_submodule(source).register_forward_hook(hook(source)) for source in sorted(sources)]
    try:
        call(teacher)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _positions(values: Tensor, channels_second: bool) -> Tensor:
    """`[B, C, H, W]` of a convolution or `[B, ..., C]` as `[positions, C]`."""
    last = values.movedim(1, -1) if channels_second else values
    return last.reshape(-1, last.shape[-1])


def _rows(count: int, most: int) -> Tensor:
    """Which of `count` positions are looked at: the same for a layer of the teacher and of the student."""
    if count <= most:
        return torch.arange(count)
    return torch.randperm(count, generator=torch.Generator().manual_seed(streams.REFIT_ROWS))[:most].sort().values


def _inputs(module: nn.Linear | nn.Conv2d, given: Tensor, rows: int) -> Tensor:
    """What the layer multiplies its weight with `[rows, inputs]`: a window for each position, for a convolution."""
    if isinstance(module, nn.Linear):
        flat = _positions(given, False)
        return flat[_rows(len(flat), rows).to(flat.device)]
    around, kernel, stride = module.padding, module.kernel_size, module.stride
    assert not isinstance(around, str)  # see `_can_be_fitted`
    height, width = (
        (side + 2 * padding - kernel) // stride + 1
        for side, padding, kernel, stride in zip(
            given.shape[2:], around, module.kernel_size, module.stride, strict=True
        )
    )
    picked = _rows(len(given) * height * width, rows)
    sample, position = picked // (height * width), picked % (height * width)
    parts = []
    for index, image in enumerate(given):  # one at a time: windows are many times as large as what they look at
        windows = functional.unfold(image[None], kernel, padding=around, stride=stride)[0]
        parts.append(windows.T[position[sample == index].to(windows.device)])
    return torch.cat(parts)


def _fit(layer: _Layer, given: Tensor, wanted: Tensor, rows: int, conversion: Conversion | None) -> None:
    """The kept outputs of the teacher's layer by the student's, where they are called on the same positions."""
    module = layer.module
    inputs = _inputs(module, given, rows)
    if len(inputs) != len(wanted) or len(inputs) < 2:
        return
    known = torch.arange(wanted.shape[1]) if layer.outputs is None else (layer.outputs != NEW).nonzero()[:, 0]
    outputs = wanted if layer.outputs is None else wanted[:, layer.outputs[known].to(wanted.device)]
    exact = torch.float32 if inputs.device.type == "mps" else torch.float64
    x, y = inputs.to(exact), outputs.to(exact) * layer.scale
    every = torch.ones_like(x[:, :1])
    if conversion is None:
        return _regress(module, known.to(x.device), x, y, every)
    scale, offset = (_positions(value, True).to(exact) for value in (conversion.scale, conversion.offset))
    picked = _rows(len(offset), rows).to(offset.device)
    scale, offset = scale[picked, :1], offset[picked]
    told, rest = known.to(x.device).split([offset.shape[1], len(known) - offset.shape[1]])
    _regress(module, told, x * scale, y[:, told] - offset, scale)
    if len(rest):
        _regress(module, rest, x, y[:, rest], every)


def _regress(module: nn.Linear | nn.Conv2d, part: Tensor, x: Tensor, y: Tensor, bias: Tensor) -> None:
    """Ridge regression of `y` on `x` and the column `bias`, towards the weights of the outputs `part`, in place."""
    # What the bias tells is taken off both; without one nothing could give it back.
    size = bias.square().sum()
    x_told, y_told = (
        bias.T @ value / size if module.bias is not None else torch.zeros_like(value[:1]) for value in (x, y)
    )
    x, y = x - bias * x_told, y - bias * y_told
    weight = module.weight[part].flatten(1).to(x.dtype)
    gram = x.T @ x / len(x)
    ridge = RIDGE * gram.diagonal().mean().clamp(min=1e-12) * (10 if len(x) < FEW * x.shape[1] else 1)
    gram.diagonal().add_(ridge)
    wanted = x.T @ (y - x @ weight.T) / len(x)
    # Apple's devices solve none of this in early versions of torch, and nothing of it in float64.
    there = torch.device("cpu") if x.device.type == "mps" else x.device
    change = torch.linalg.solve(*(value.to(there, torch.float64) for value in (gram, wanted))).T.to(x)
    fitted = weight + change
    if not torch.isfinite(fitted).all():
        return
    module.weight[part] = fitted.view_as(module.weight[part]).to(module.weight.dtype)
    if module.bias is not None:
        module.bias[part] = (y_told - x_told @ fitted.T)[0].to(module.bias.dtype)
