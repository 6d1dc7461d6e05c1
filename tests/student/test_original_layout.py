"""Students that programs of the original layout can load, where that costs nothing; and what it would cost U-Nets."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from diffcompress.families import registry
from diffcompress.families.base import complete
from diffcompress.families.shapes import shapes
from diffcompress.sources import originals
from diffcompress.sources.original_shapes import limit
from diffcompress.student import knob_values
from diffcompress.student.plan import plan
from diffcompress.student.search import TOLERANCE, Search
from diffcompress.student.stack_search import FREE, StackSearch

KNOWN = {name: dict(one["config"]) for name, one in originals.published().items()}


@pytest.mark.parametrize(
    ("kind", "ratio", "heads", "layers"),
    [("sd3", 0.6, 20, 20), ("sd35_large", 0.75, 35, 35), ("sd3", 0.15, 13, 12), ("sd3", 0.4, 18, 17)],
)
def test_as_many_heads_as_blocks_where_that_is_as_good(kind: str, ratio: float, heads: int, layers: int) -> None:
    """Not so where no such student comes within 5 % of the size."""
    student = plan(registry.find("SD3Transformer2DModel"), KNOWN[kind], ratio=ratio)
    assert (student.choice["heads"], student.choice["num_layers"]) == (heads, layers)
    assert (limit(student.family, student.config) is None) == (heads == layers)


def test_where_no_student_can_be_said_it_is_the_one_that_costs_least() -> None:
    teacher = KNOWN["sd3"] | {"in_channels": 4, "out_channels": 4}
    student = plan(registry.find("SD3Transformer2DModel"), teacher, ratio=0.6)
    assert (student.choice["heads"], student.choice["num_layers"]) == (20, 21)


def test_what_is_preferred_costs_little_more() -> None:
    family = registry.find("SD3Transformer2DModel")
    config = complete(family.class_name, KNOWN["sd35_large"])

    def count(choice: Any) -> int:
        return shapes(family.class_name, family.shrunk_config(config, choice)).num_parameters

    def best(preferred: Any) -> Any:
        variants = family.variants(config, channels_per_group=2)
        return StackSearch(
            family, config, variants, 0.5 * count({"head_dim": 64, "heads": 38, "num_layers": 38}), count, preferred
        ).best()

    plain = best(lambda choice: False)
    for layers, free in ((29, True), (25, False)):
        found = best(lambda choice, layers=layers: choice["num_layers"] == layers)
        assert (found.choice["num_layers"] == layers) == free
        assert plain.cost <= found.cost <= plain.cost + FREE


@pytest.mark.parametrize(("kind", "ratio"), [("v1", 0.25), ("v2", 0.25), ("xl_base", 0.25)])
def test_a_u_net_that_could_be_said_costs_more(kind: str, ratio: float) -> None:
    """Widths of multiples of the first, and a time embedding of four times the first, hardly ever make the size."""
    family = registry.find("UNet2DConditionModel")
    config = complete(family.class_name, KNOWN[kind])
    target = ratio * shapes(family.class_name, config).num_parameters
    search = Search(family, config, family.variants(config, channels_per_group=2), target, ratio)
    depth, variant = search.depths()[0], search.variants[0]
    first, *others = (knob for knob in variant.knobs if knob.kind == "width")
    every = [
        (width, *more, 4 * width)
        for width in first.values
        for more in itertools.product(*([value for value in knob.values if value % width == 0] for knob in others))
    ]
    knobs, points = [first, *others, variant.knobs[-1]], np.array(every, dtype=float)
    error = (search.polynomial(depth)(points) - knob_values.shortcuts(points, knobs)) / target - 1
    costs = knob_values.imbalance(points, knobs, search.ideal(depth)) + 5 * abs(error)
    near = costs[abs(error) <= TOLERANCE]
    assert len(near) <= 2
    assert (near > search.best(variant, depth).cost + FREE).all()
