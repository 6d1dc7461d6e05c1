"""JSON Schemas of all that is printed with --json or lies in a file for others, made from the records.

`python -m diffcompress.records.schemas FOLDER` writes them (`make schemas`); a test compares.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import CoreSchema

from diffcompress.recipe import Recipe
from diffcompress.records.environment import Environment, NamedRecipe
from diffcompress.records.evaluation import Evaluation
from diffcompress.records.planned import Planned
from diffcompress.records.provenance import Provenance
from diffcompress.records.report import Report, Shrunk

DRAFT = "https://json-schema.org/draft/2020-12/schema"
# Of each schema its title, and what it is of; several ratios or students give a list.
SCHEMAS: dict[str, tuple[str, Any]] = {
    "env": ("diffcompress env --json", Environment),
    "evaluate": (
        "diffcompress evaluate --json, evaluation.json; a list for several students", Evaluation | list[Evaluation],
    ),
    "plan": ("diffcompress plan --json; a list for several ratios", Planned | list[Planned]),
    "provenance": ("pipeline/diffcompress.json", Provenance),
    "recipe": ("diffcompress recipes show --json, recipe.yaml", Recipe),
    "recipes": ("diffcompress recipes list --json", list[NamedRecipe]),
    "report": ("diffcompress report --json, report.json", Report),
    "shrink": ("diffcompress shrink --json; a list for several ratios", Shrunk | list[Shrunk]),
}  # fmt: skip


class _Told(GenerateJsonSchema):
    """Without titles that repeat a name, and without defaults: they are how early files are read, not what is meant."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def model_schema(self, schema: CoreSchema) -> JsonSchemaValue:  # type: ignore[override]
        return {key: value for key, value in super().model_schema(schema).items() if key != "title"}  # type: ignore[arg-type]

    def default_schema(self, schema: Any) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])


def schema(name: str) -> dict[str, Any]:
    title, kind = SCHEMAS[name]
    if kind is Recipe:  # its defaults are what a recipe leaves out
        return {"$schema": DRAFT} | Recipe.model_json_schema()
    return {"$schema": DRAFT, "title": title} | TypeAdapter(kind).json_schema(schema_generator=_Told)


def write(folder: Path) -> None:
    for name in SCHEMAS:
        text = json.dumps(schema(name), indent=2, ensure_ascii=False)
        (folder / f"{name}.schema.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
