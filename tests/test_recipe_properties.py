"""Any recipe survives being written and read, as a whole and value by value."""

from __future__ import annotations

import types
from typing import Any, Union, get_args, get_origin

import yaml
from hypothesis import given
from hypothesis import strategies as st

from diffcompress import recipe as recipes
from diffcompress.recipe import Recipe, Section, StageSection

NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,9}", fullmatch=True)
TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=30)


def values(annotation: Any, metadata: list[Any]) -> st.SearchStrategy[Any]:
    """Values of a field, within the limits that it states."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return sections(annotation)
    if get_origin(annotation) in (Union, types.UnionType):
        (inner,) = (one for one in get_args(annotation) if one is not type(None))
        return st.none() | values(inner, metadata)
    if get_origin(annotation) is tuple:
        parts = [values(*_plain(one)) for one in get_args(annotation) if one is not Ellipsis]
        return st.lists(parts[0], max_size=3).map(tuple) if Ellipsis in get_args(annotation) else st.tuples(*parts)
    if annotation is str:
        return TEXTS
    if annotation in (int, float):
        limits = {
            name: getattr(one, name) for one in metadata for name in ("ge", "gt", "le", "lt") if hasattr(one, name)
        }
        least, most = limits.get("ge", limits.get("gt", 0)), limits.get("le", limits.get("lt", 10**6))
        if annotation is int:
            return st.integers(least, most)
        return st.floats(least, most, exclude_min="gt" in limits, exclude_max="lt" in limits)
    return st.from_type(annotation)


def _plain(annotation: Any) -> tuple[Any, list[Any]]:
    """An annotated item of a tuple, as pydantic has a field."""
    inner, *rest = get_args(annotation) or [annotation]
    return inner, [limit for one in rest for limit in one.metadata]


@st.composite
def sections(draw: st.DrawFn, kind: type[Section]) -> Section:
    drawn = {
        name: draw(NAMES if name == "name" else values(field.annotation, field.metadata))
        for name, field in kind.model_fields.items()
        if name != "stages"
    }
    if kind is StageSection:  # one objective, of some weight
        weights = drawn["weights"].model_dump()
        weights |= {draw(st.sampled_from(["lift", "place"])): 0.0}
        drawn["weights"] = weights | {"output_kd": weights["output_kd"] or 0.5}
    if kind is Recipe:
        drawn["stages"] = tuple(draw(st.lists(sections(StageSection), min_size=1, max_size=3)))
    return kind(**drawn)


@given(sections(Recipe))
def test_a_recipe_is_what_its_file_says(recipe):
    assert recipes.parse(recipe.to_yaml(), "recipe.yaml") == recipe
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


@given(sections(Recipe))
def test_every_value_can_be_set_alone(recipe):
    """`--set` of each value in turn turns the default recipe into any other with as many stages."""
    data = recipe.model_dump(mode="json")
    data["stages"] = [data["stages"][0], data["stages"][-1]]
    wanted = Recipe.model_validate(data)
    base = recipes.load("default")
    overrides = [f"{path}={yaml.safe_dump(value).removesuffix('...')}" for path, value in leaves(data)]
    assert recipes.load("default", tuple(overrides), seed=None) == wanted
    assert recipes.load("default") == base


def leaves(node: Any, path: str = ""):
    """Path and value of everything that is no section and no list of them."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from leaves(value, f"{path}.{key}" if path else key)
    elif isinstance(node, list) and node and isinstance(node[0], dict):
        for number, value in enumerate(node):
            yield from leaves(value, f"{path}.{number}")
    else:
        yield path, node
