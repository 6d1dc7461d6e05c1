"""The samples that ship with the demo are those that `shrink` and `evaluate` look for: the teacher is not drawn again.

A protocol, a key, an extractor or a demo that changes needs benchmarks/make_demo_samples.py to be run again.
"""

from __future__ import annotations

import pytest

from diffcompress import recipe as recipes
from diffcompress import runtime as runtimes
from diffcompress.evaluation.cache import SampleCache
from diffcompress.jobs.deliver import judged
from diffcompress.jobs.testbed import prepare
from diffcompress.pipeline.load import load
from diffcompress.records.request import EvaluateOptions
from diffcompress.runtime import Progress, start
from diffcompress.sources.resolve import resolve


class Drawing(Progress):
    def update(self, task, done, total, **values):
        pytest.fail("the teacher is drawn again: run benchmarks/make_demo_samples.py and remove the old entry")


def test_shrink_and_evaluate_find_them(tmp_path):
    teacher = load(resolve("demo"))
    recipe = recipes.load(recipes.default_for("demo", teacher.family.recipe))
    testbed = prepare(runtimes.start("cpu"), teacher, teacher, None, EvaluateOptions("demo"), tmp_path, Progress())
    for space, protocol in (judged(teacher, recipe, Progress()), (testbed.space, testbed.protocol)):
        drawn = SampleCache(tmp_path, start("cpu"), Drawing()).draw(teacher, protocol, space, "sampling the teacher")
        assert len(drawn.features) == len(drawn.variation) == protocol.num_samples
    assert not list(tmp_path.iterdir())
