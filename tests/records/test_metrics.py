"""The table of metrics, and names as results hold them."""

from __future__ import annotations

import pytest

from diffcompress.records.metrics import KINDS, TABLE, Metric, every


def test_the_table_has_each_kind_once_and_every_name_comes_back() -> None:
    assert len(KINDS) == len(TABLE)
    names = every("mine")
    assert {name: Metric.named(name) for name in names} == names
    assert [metric.name for metric in names.values()] == list(names)


@pytest.mark.parametrize(
    ("name", "kind", "space", "held_out", "corrected"),
    [
        ("fd_demo", "fd", "demo", False, False),
        ("fd_teacher_demo", "fd_teacher", "demo", False, False),
        ("fd_teacher", "fd_teacher", None, False, False),
        ("fd_demo_held_out", "fd", "demo", True, False),
        ("kd_teacher_my_own_corrected", "kd_teacher", "my_own", False, True),
        ("failed_samples_corrected", "failed_samples", None, False, True),
        ("latency_ms_batch16", "latency_ms_batch16", None, False, False),
    ],
)
def test_a_name_says_what_was_measured(
    name: str, kind: str, space: str | None, held_out: bool, corrected: bool
) -> None:
    assert Metric.named(name) == Metric(KINDS[kind], space, held_out, corrected)


def test_a_metric_of_a_later_version_is_a_number_without_a_meaning() -> None:
    found = Metric.named("brand_new")
    assert (found.name, found.label) == ("brand_new", "Brand new")
    assert not (found.kind.is_cost or found.kind.is_perceptual or found.kind.most)


def test_each_kind_is_told_whole() -> None:
    for kind in TABLE:
        assert kind.label and kind.measured_in
        assert kind.source or not kind.is_perceptual
        assert kind.to is not None or kind.is_cost
        assert kind.instead_of in ("", *KINDS)
