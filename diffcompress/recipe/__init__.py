"""All settings of a run: every knob with its default, in frozen validated sections; YAML in and out.

A recipe file holds only what differs from its `base` (another recipe's name; default: the defaults of the sections).
`--set key=value` overrides single values. All bad keys and values are reported at once, each with its path.
"""

from diffcompress.recipe.methods import METHODS
from diffcompress.recipe.reading import builtin_folder, builtin_names, default_for, doubts, load, nearest, parse
from diffcompress.recipe.sections import (
    BankSection,
    EvaluationSection,
    ExportSection,
    LossWeights,
    Recipe,
    Section,
    StageSection,
    StudentSection,
    TargetsSection,
    TrainingSection,
)

__all__ = [
    "METHODS",
    "BankSection",
    "EvaluationSection",
    "ExportSection",
    "LossWeights",
    "Recipe",
    "Section",
    "StageSection",
    "StudentSection",
    "TargetsSection",
    "TrainingSection",
    "builtin_folder",
    "builtin_names",
    "default_for",
    "doubts",
    "load",
    "nearest",
    "parse",
]
