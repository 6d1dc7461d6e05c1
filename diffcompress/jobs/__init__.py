"""The four jobs, by name: `shrink`, `plan`, `evaluate`, `report`. Importing this loads none of them."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffcompress.jobs.evaluate import evaluate
    from diffcompress.jobs.plan import plan
    from diffcompress.jobs.report import report
    from diffcompress.jobs.shrink import shrink

__all__ = ["evaluate", "plan", "report", "shrink"]


class _Jobs(ModuleType):
    """Each job has the name of the file it lies in, and importing a file binds the module; here the function wins."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, getattr(value, name) if name in __all__ and isinstance(value, ModuleType) else value)


sys.modules[__name__].__class__ = _Jobs


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(f"{__name__}.{name}"), name)
