"""Text as numbers of pieces: what is spelled is the concatenation of the pieces."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from kvray.tasks.kv.text import Pieces, fill_in, integer_pieces, listed


def test_spelling_is_concatenation() -> None:
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, 1000, (5, 2), dtype=np.int32)
    pieces = Pieces([pa.array([""]), integer_pieces(1000, "<", ">")])
    numbers = drawn + pieces.starts[1]
    texts = pieces.spell(5, ["a fixed text ", numbers[:, 0], "", np.zeros(5, np.int32), numbers])
    assert texts.to_pylist() == [f"a fixed text <{a}><{a}><{b}>" for a, b in drawn]
    assert pieces.spell(2, ["é", "a fixed text "]).to_pylist() == ["éa fixed text "] * 2
    assert pieces.spell(0, ["a", numbers[:0]]).to_pylist() == []


def test_a_text_keeps_its_number_and_the_tables_theirs() -> None:
    pieces = Pieces([integer_pieces(3), integer_pieces(2, "(", ")")])
    assert pieces.starts == [0, 3]
    assert [pieces.number(text) for text in ("new", "newer", "new")] == [5, 6, 5]
    assert pieces.spell(1, [np.array([[4, 2, 5]], np.int32)]).to_pylist() == ["(1)2new"]


def test_wordings_are_filled_in_by_name() -> None:
    pieces = Pieces([integer_pieces(10)])
    numbers = np.array([[1, 2, 3], [7, 8, 9]], np.int32)
    parts = fill_in("of {keys} the last is {key}.", key=numbers[:, 2], keys=listed(numbers))
    assert pieces.spell(2, parts).to_pylist() == ["of 1, 2, 3 the last is 3.", "of 7, 8, 9 the last is 9."]
