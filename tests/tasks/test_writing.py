"""What a model writes: how much is asked, how replies are read, which are used."""

from __future__ import annotations

import pyarrow as pa
import pytest

from kvray.errors import InputError
from kvray.store.schemas import WRITING_SCHEMA
from kvray.tasks import writing
from kvray.tasks.writing import asked, choose, fields

FORM = ("Question", "Answer")


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("Question: Who?\nAnswer: Ann.", ["Who?", "Ann."]),
        ("  question:   Who\n  is it?\n\nANSWER:\nAnn\nFord.  \n", ["Who is it?", "Ann Ford."]),
        ("Sure, here is one:\n\n**Question:** Who?\n**Answer:** Ann.", ["Who?", "Ann."]),
        ("**Question: Who?**\n\n**Answer: Ann.**", ["Who?", "Ann."]),
        ("### Question: Who?\n- Answer: Ann said: yes.", ["Who?", "Ann said: yes."]),
        # A second pair is another question; the first one stands alone.
        ("Question: Who?\nAnswer: Ann.\n\nQuestion: Where?\nAnswer: Here.", ["Who?", "Ann."]),
        ("Question: Is 'Answer: x' a field?\nAnswer: Not in a line.", ["Is 'Answer: x' a field?", "Not in a line."]),
        ("Question: Who?", None),
        ("Answer: Ann.\nQuestion: Who?", None),
        ("Question: Who?\nAnswer:   \n", None),
        ("Question:\nAnswer: Ann.", None),
        ("Question: Who?\nQuestion: Where?\nAnswer: Here.", None),
        ("The questionnaire: none", None),
        ("", None),
    ],
)  # fmt: skip
def test_fields_are_read_by_their_names_at_line_starts(reply: str, expected: list[str] | None) -> None:
    assert fields(reply, FORM) == expected


def test_names_are_taken_to_the_letter() -> None:
    assert fields("A.B: x", ("A.B",)) == ["x"]
    assert fields("AxB: x", ("A.B",)) is None


@pytest.mark.parametrize(("needed", "surplus", "expected"), [(10, 0.0, 10), (10, 0.5, 15), (7, 0.5, 11), (0, 2.0, 0)])
def test_more_is_asked_than_needed(needed: int, surplus: float, expected: int) -> None:
    assert asked(needed, surplus) == expected


def test_the_first_usable_replies_are_chosen_in_order() -> None:
    looked = []

    def read(number: int, reply: str) -> tuple[int, str] | None:
        looked.append(number)
        return (number, reply) if reply else None

    chosen = choose(["a", "", "b", "c", "d"], 3, read, writer="w", what="questions")
    assert chosen == [(0, "a"), (2, "b"), (3, "c")]
    assert looked == [0, 1, 2, 3]
    assert choose([], 0, read, writer="w", what="questions") == []


def test_too_few_usable_replies_say_how_many_of_how_many() -> None:
    with pytest.raises(InputError, match=r"questions: some/model wrote 2 that can be used, in 4 replies; 3 are needed"):
        choose(["a", "", "b", ""], 3, lambda _, reply: reply or None, writer="some/model", what="questions")


def test_what_was_cut_off_or_not_asked_is_no_text() -> None:
    rows = [
        {"index": 2, "prompt": "p", "text": "whole", "finish_reason": "stop"},
        {"index": 0, "prompt": "p", "text": "cut o", "finish_reason": "length"},
        {"index": 1, "prompt": "p", "text": "", "finish_reason": "too_long"},
    ]
    table = pa.Table.from_pylist([{**row, "prompt_tokens": 1, "output_tokens": 1} for row in rows], WRITING_SCHEMA)
    assert writing.texts(table) == ["", "", "whole"]
