"""The samples that ship with the demo are those that `shrink` and `evaluate` look for: the teacher is not drawn again.

A protocol, a key, an extractor or a demo that changes needs benchmarks/make_demo_samples.py to be run again.
"""

from __future__ import annotations

import pytest

from benchmarks import make_demo_samples
from diffcompress import recipe as recipes
from diffcompress import runtime as runtimes
from diffcompress.evaluation.cache import SampleCache, is_shipped
from diffcompress.jobs.deliver import judged
from diffcompress.jobs.testbed import prepare
from diffcompress.pipeline.load import load
from diffcompress.records.request import EvaluateOptions
from diffcompress.runtime import Progress, start
from diffcompress.sources.resolve import resolve


class Drawing(Progress):
    def update(self, task, done, total, **values):
        pytest.fail("the teacher is drawn again: run benchmarks/make_demo_samples.py and remove the old entry")


@pytest.mark.parametrize("name", make_demo_samples.TEACHERS)
def test_shrink_finds_them_and_those_of_its_probe(tmp_path, name):
    teacher, asked = make_demo_samples.entries(name, tmp_path / "prompts")
    for protocol, space in asked:
        drawn = SampleCache(tmp_path / "cache", start("cpu"), Drawing()).draw(teacher, protocol, space, "sampling")
        assert len(drawn.variation) == protocol.num_samples
        assert (drawn.features is None) == (space is None)
        assert is_shipped(teacher.fingerprint, protocol)


def test_shrink_and_evaluate_find_them(tmp_path):
    teacher = load(resolve("demo"))
    recipe = recipes.load(recipes.default_for("demo", teacher.family.recipe))
    testbed = prepare(runtimes.start("cpu"), teacher, teacher, None, EvaluateOptions("demo"), tmp_path, Progress())
    for space, protocol in (judged(teacher, recipe, Progress()), (testbed.space, testbed.protocol)):
        drawn = SampleCache(tmp_path, start("cpu"), Drawing()).draw(teacher, protocol, space, "sampling the teacher")
        assert len(drawn.features) == len(drawn.variation) == protocol.num_samples
    assert not list(tmp_path.iterdir())
