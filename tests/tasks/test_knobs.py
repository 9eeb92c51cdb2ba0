"""Lists of numbers as people write them."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter

from kvray.tasks.base import Many, distinct, listed


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        (5, (5,)),
        (2.5, (2.5,)),
        ("1,5, 10", ("1", "5", "10")),
        ("0, 12.5", ("0", "12.5")),
        ([1, 2], [1, 2]),
        ("random", "random"),
        ("1,x", "1,x"),
        (True, True),
        (None, None),
    ],
)
def test_one_number_and_numbers_with_commas_are_lists(typed: object, read: object) -> None:
    assert listed(typed) == read


def test_an_empty_list_and_a_repeat_are_refused() -> None:
    assert distinct((1, 2)) == (1, 2)
    for wrong in ((), (1, 2, 1)):
        with pytest.raises(ValueError, match=r"found .* each once"):
            distinct(wrong)


@pytest.mark.parametrize("typed", [("a", "b"), ["a", "b"], "a, b", "a,b"])
def test_several_words_are_a_list_or_words_with_commas(typed: object) -> None:
    assert TypeAdapter(Many[str]).validate_python(typed) == ("a", "b")
    assert TypeAdapter(Many[int]).validate_python("4096, 8192") == (4096, 8192)
    assert TypeAdapter(Many[int]).validate_python(4096) == (4096,)
