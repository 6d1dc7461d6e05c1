import pytest

from diffcompress.records import units


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (units.number(9.314), "9.31"),
        (units.number(0.02104), "0.0210"),
        (units.number(2048), "2,048"),
        (units.number(3.9e-7), "3.90 × 10⁻⁷"),
        (units.number(None), "not computed"),
        (units.number(float("nan")), "not computed"),
        (units.count(1274331), "1.27 M"),
        (units.count(9_999), "9,999"),
        (units.count(63402), "63.4 k"),
        (units.size(109_000), "109 kB"),
        (units.duration(61.4), "1 min 1 s"),
        (units.duration(3599.9), "1 h 0 min"),
        (units.duration(59.96), "60 s"),
        (units.percent(0.04975), "4.98 %"),
        (units.short(0.6), "0.6"),
        (units.duration(63), "1 min 3 s"),
        (units.duration(4.24), "4.24 s"),
        (units.times(50_000, 2_500), "20"),
    ],
)
def test_numbers_in_words(text: str, expected: str) -> None:
    assert text == expected
