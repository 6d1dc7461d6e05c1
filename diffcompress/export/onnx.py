"""The denoiser as an ONNX file, computing what torch does; needs the extra `diffcompress[onnx]`."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from diffcompress.errors import DiffCompressError, UsageError
from diffcompress.families.base import Family
from diffcompress.noise import generator
from diffcompress.pipeline.trace import calls_of

TOLERANCE = 1e-4
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
# Batches that the file is checked with; it is traced with the first two, which tells what the batch axis is.
_BATCHES = (2, 3, 1)
# protobuf cannot hold more than 2 GB in one file; larger weights lie beside it.
_MOST_BYTES_INSIDE = 1_500_000_000


def check_installed() -> None:
    """Raise UsageError when the extra `onnx` is missing: better before training than after."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            f"export.onnx needs {', '.join(missing)}, which is not installed", "pip install 'diffcompress[onnx]'"
        )


def check_inputs(family: Family, config: Mapping[str, Any]) -> None:
    """Raise UsageError for a class whose inputs are no plain tensors."""
    with torch.device("meta"):
        denoiser = getattr(diffusers, family.class_name).from_config(config)
    _split(_arguments(family, denoiser, config, batch=1), family)


def export_onnx(family: Family, denoiser: nn.Module, config: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """Write float32 `denoiser` to `file` (more than 1.5 GB: weights in a file beside it) and run it with onnxruntime.

    Inputs are the tensors of the diffusers class's own forward, by its names; output `prediction` is its sample, as
    the class returns it. The batch is free, all other axes are those of `config`. Returns {"inputs", "difference",
    "tolerance", "batches"}, difference being the largest one relative to the largest value. Raises DiffCompressError
    when it is above TOLERANCE or torch cannot write the file, UsageError for a class whose inputs are no plain tensors.
    """
    denoiser = denoiser.eval()
    calls = {batch: _arguments(family, denoiser, config, batch) for batch in _BATCHES}
    tensors, fixed = _split(calls[_BATCHES[0]], family)
    others, _ = _split(calls[_BATCHES[1]], family)
    batch = torch.export.Dim("batch", min=1)
    shapes = {
        name: {axis: batch for axis, (a, b) in enumerate(zip(one.shape, others[name].shape, strict=True)) if a != b}
        for name, one in tensors.items()
    }
    wrapped = _Bare(denoiser, tuple(tensors), fixed)
    with _quietly():
        try:
            program = torch.onnx.export(
                wrapped,
                tuple(tensors.values()),
                dynamo=True,
                dynamic_shapes=(tuple(shapes.values()),),
                input_names=[name.replace(".", "_") for name in tensors],
                output_names=["prediction"],
                verbose=False,
            )
        except Exception as error:
            raise DiffCompressError(
                f"torch {torch.__version__} does not write a {family.class_name} as ONNX: {type(error).__name__}",
                "--set export.onnx=false goes on without it; --traceback says what it lacks",
            ) from error
        size = sum(value.nbytes for value in denoiser.state_dict().values())
        program.save(str(file), external_data=size > _MOST_BYTES_INSIDE)  # type: ignore[union-attr]
    difference = max(_difference(file, wrapped, _split(call, family)[0]) for call in calls.values())
    if not difference <= TOLERANCE:
        raise DiffCompressError(
            f"{file.name} does not compute what torch does: relative difference {difference:.3g} exceeds {TOLERANCE:g}",
            "keep the run folder and report this as a bug; --set export.onnx=false goes on without it",
        )
    inputs = {
        name.replace(".", "_"): ["batch" if axis in shapes[name] else size for axis, size in enumerate(one.shape)]
        for name, one in tensors.items()
    }
    return {"inputs": inputs, "difference": difference, "tolerance": TOLERANCE, "batches": sorted(_BATCHES)}


class _Bare(nn.Module):
    """The denoiser with tensors alone going in and coming out; nested arguments have a dot in their name."""

    def __init__(self, denoiser: nn.Module, names: tuple[str, ...], fixed: Mapping[str, Any]) -> None:
        super().__init__()
        self.denoiser, self.names, self.fixed = denoiser, names, dict(fixed)

    def forward(self, *tensors: Tensor) -> Tensor:
        arguments: dict[str, Any] = dict(self.fixed)
        for name, tensor in zip(self.names, tensors, strict=True):
            outer, _, inner = name.partition(".")
            arguments[outer] = {**arguments.get(outer, {}), inner: tensor} if inner else tensor
        return self.denoiser(**arguments | {"return_dict": False})[0]


@torch.no_grad()
def _arguments(family: Family, denoiser: nn.Module, config: Mapping[str, Any], batch: int) -> dict[str, Any]:
    """What the family gives the denoiser's forward for random inputs, by the names of its parameters."""
    inputs = family.example_inputs(config, batch)
    draw = generator(batch)
    for name, value in inputs.items():
        if value.is_floating_point() and name != "timestep":
            inputs[name] = torch.randn(value.shape, generator=draw)
    inputs["timestep"] = torch.arange(1, batch + 1, dtype=inputs["timestep"].dtype) * 200
    conditioning = {name: value for name, value in inputs.items() if name not in ("noisy", "timestep")}
    with calls_of(denoiser, most=1) as calls:
        family.predict(denoiser, inputs["noisy"], inputs["timestep"], conditioning)
    return {name: value for name, value in calls[0].items() if value is not None}


def _split(arguments: Mapping[str, Any], family: Family) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors, nested ones too, and what is fixed in the file."""
    tensors: dict[str, Tensor] = {}
    fixed: dict[str, Any] = {}
    for name, value in arguments.items():
        if isinstance(value, Tensor):
            tensors[name] = value
        elif isinstance(value, Mapping):
            inner = {key: one for key, one in value.items() if isinstance(one, Tensor)}
            tensors |= {f"{name}.{key}": one for key, one in inner.items()}
            if rest := {key: one for key, one in value.items() if key not in inner}:
                fixed[name] = rest
        elif isinstance(value, (list, tuple)) and any(isinstance(one, Tensor) for one in value):
            raise UsageError(
                f"a {family.class_name} takes lists of tensors ({name}), which ONNX files cannot",
                "--set export.onnx=false",
            )
        else:
            fixed[name] = value
    return tensors, fixed


@torch.no_grad()
def _difference(file: Path, wrapped: nn.Module, tensors: Mapping[str, Tensor]) -> float:
    """Largest difference between onnxruntime and torch, relative to torch's largest value."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    feed = {name.replace(".", "_"): value.numpy() for name, value in tensors.items()}
    found = torch.from_numpy(session.run(["prediction"], feed)[0])
    expected = wrapped(*tensors.values())
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-12))


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """The exporter talks a lot; what matters is checked afterwards."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
