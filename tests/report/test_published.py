"""Published means of RULER's tasks in the report: beside ours where all were asked of the same model, else nowhere."""

from __future__ import annotations

from pathlib import Path

import paper_store
import pytest

from kvray.report import published
from kvray.report.blocks import Table
from kvray.results import snapshot
from kvray.results.profile import LENGTH
from kvray.store.store import Store

V02 = "mistralai/Mistral-7B-Instruct-v0.2"


def collected(folder: Path, base_model: str, ruler: tuple[str, ...]) -> snapshot.Snapshot:
    store = Store(str(folder / "store"))
    paper_store.commit(
        store, questions=12, mixtures=("kv", "in2"), evaluations=["ruler"], base_model=base_model, ruler=ruler
    )
    return snapshot.collect(store, "paper")


def test_published_means_of_all_tasks_stand_beside_ours(tmp_path: Path) -> None:
    state = collected(tmp_path, V02, paper_store.RULER)
    (table,) = [block for block in published.beside(state) if isinstance(block, Table)]
    places = [(row[1], row[2]) for row in table.rows]
    lengths = ("4,096 tokens", "8,192 tokens", "16,384 tokens", "32,768 tokens")
    assert sorted(places) == sorted((length, model) for length in lengths for model in ("base", "in2"))
    ours = state.predictions.filter(model="base", length=4096)["score"].mean()
    (row,) = [row for row in table.rows if row[1:3] == ["4,096 tokens", "base"]]
    assert f"{100 * float(str(ours)):.1f} %" in row and "93.6 %" in row
    assert len(published.curves(state, "ruler", LENGTH)) == 2
    assert len(state.profiles["ruler"].title) and state.profiles["ruler"].by_subtask


@pytest.mark.parametrize(
    ("base_model", "ruler"),
    [(V02, paper_store.RULER[:12]), ("mistralai/Mistral-7B-Instruct-v0.1", paper_store.RULER)],
)
def test_means_are_left_out_where_a_task_is_missing_or_the_model_another(
    tmp_path: Path, base_model: str, ruler: tuple[str, ...]
) -> None:
    state = collected(tmp_path, base_model, ruler)
    assert published.beside(state) == [] and published.curves(state, "ruler", LENGTH) == []
    assert published.lines(state, "ruler", LENGTH, [4096]) == []
