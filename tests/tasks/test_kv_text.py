"""Text as padded cells: what comes out is the concatenation of what went in."""

from __future__ import annotations

import numpy as np
import pytest

from kvray.tasks.kv.text import cells, integer_cells, squeeze, weave


def test_weaving_is_concatenation() -> None:
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, 1000, (5, 2))
    table = integer_cells(1000, "<", ">")
    buffer = weave(5, ["a fixed text ", table[numbers[:, 0]], "", table[numbers]])
    texts = squeeze(buffer)
    assert [t.decode() for t in texts] == [f"a fixed text <{a}><{a}><{b}>" for a, b in numbers]


def test_what_does_not_fit_a_cell_is_refused() -> None:
    assert squeeze(integer_cells(10**6, "", "}\n")[-1:, None]) == [b"999999}\n"]
    with pytest.raises(ValueError, match="does not fit"):
        integer_cells(10**6, "(", "}\n")
    with pytest.raises(ValueError, match="more than 1 cells"):
        cells("nine char", 1)
