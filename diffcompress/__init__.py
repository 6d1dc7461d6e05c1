"""diffcompress: compress diffusion models by knowledge distillation. Importing it loads no torch."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"
__all__ = ["evaluate", "plan", "report", "shrink"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("diffcompress.jobs"), name)
    raise AttributeError(f"module 'diffcompress' has no attribute '{name}'")
