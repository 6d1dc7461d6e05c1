"""diffcompress: compress diffusion models by knowledge distillation. Importing it loads no torch."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

__version__ = "0.1.0"
__all__ = ["evaluate", "plan", "report", "shrink"]


class _Package(ModuleType):
    """`report` is a job and a room of the house; importing the room binds the module, and here the job wins."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("diffcompress.jobs"), name)
    raise AttributeError(f"module 'diffcompress' has no attribute '{name}'")
