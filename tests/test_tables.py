"""Tables stay aligned; times and counts read as people write them."""

from __future__ import annotations

import pytest

from kvray.console import count, duration, table


def test_columns_are_aligned_and_numbers_stand_right() -> None:
    lines = table(["name", "rows"], [["a", 1], ["long name", "1,234"], ["c", None]]).splitlines()
    assert lines == ["name        rows", "---------  -----", "a              1", "long name  1,234", "c              -"]


def test_a_table_without_rows_is_its_header() -> None:
    assert table(["a", "b"], []).splitlines() == ["a  b", "-  -"]


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="2 cells"):
        table(["one"], [["a", "b"]])


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "<1 s"), (42, "42 s"), (130, "2 min"), (5400, "90 min"), (7500, "2 h 05 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_counts_have_their_thousands_apart() -> None:
    assert count(1234567.4) == "1,234,567"
