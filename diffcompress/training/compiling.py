"""The student's passes as fused kernels: fewer launches a step, for minutes of compiling before the first."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch

from diffcompress.memory import gradients
from diffcompress.training.objective import Trainee

# On a CPU it gains nothing (docs/benchmarks.md).
DEVICES = ("cuda",)
# Seconds of training below which nobody tries: compiling takes minutes.
LONG_ENOUGH = 3600.0
# Of a step's time: what gains less stays as it is, and as its reader knows it.
WORTH = 0.95
_LONGEST_QUOTE = 200


def compile_student(trainee: Trainee, step: Callable[[], object]) -> str | None:
    """Compile the student of `trainee` in place; why not, where `step`, forward and backward pass, then fails. One that
    is compiled stays.

    What torch raises is of many kinds: no compiler here, operators that it does not know, kernels that do not build.
    """
    if trainee.student._compiled_call_impl is not None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own insides
        trainee.student.compile(dynamic=False)
        try:
            with gradients(trainee):
                step()
        except Exception as error:
            leave(trainee)
            return f"{type(error).__name__}: {' '.join(str(error).split())[:_LONGEST_QUOTE]}"
    return None


def leave(trainee: Trainee) -> None:
    """The student as it was before `compile_student`, for which torch has no name of its own."""
    trainee.student._compiled_call_impl = None
    torch.compiler.reset()
