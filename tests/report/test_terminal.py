"""The summary for a terminal fits it."""

from __future__ import annotations

from pathlib import Path

import paper_store

from kvray.report import terminal
from kvray.store.store import Store


def test_many_evaluations_follow_in_blocks_that_fit(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    paper_store.commit(store, questions=12, mixtures=("kv-template", "in2"))
    lines = terminal.summary(store, "paper")
    assert max(map(len, lines)) < 160
    heads = " ".join(line for line in lines if line.startswith(" "))
    assert [evaluation for evaluation in paper_store.cells(1) if evaluation not in heads] == []
    assert sum(line.startswith("kv-template ") for line in lines) == sum(line.startswith("base ") for line in lines) > 2


def test_columns_stand_side_by_side_as_far_as_they_fit() -> None:
    names = ["", "a", "bb"]
    columns = [["one", "1", "2"], ["two", "333", "4"], ["three", "5", "6"]]
    assert terminal.blocks(names, columns, 14) == [
        "    one  two",
        "a   1    333",
        "bb  2    4",
        "",
        "    three",
        "a   5",
        "bb  6",
    ]
    assert terminal.blocks(names, columns, 3)[0] == "    one"  # one is shown however narrow the terminal
