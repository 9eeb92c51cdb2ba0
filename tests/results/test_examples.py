"""Rows of predictions with what was asked: prompts, references and the place of the answer, from the dataset."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from kvray.results.examples import with_prompts
from kvray.results.reader import Results
from kvray.store.store import Store


@pytest.fixture
def results(tmp_path: Path, make_sweep) -> Results:
    store = Store(tmp_path / "store")
    make_sweep(store, questions=12)
    return Results(store)


def test_prompts_are_joined_in_the_order_of_the_rows(results: Results) -> None:
    rows = results.predictions("first").collect().sample(fraction=1.0, shuffle=True, seed=3)
    asked = with_prompts(results.store, rows)
    assert asked.select(rows.columns).equals(rows)
    assert asked["dataset"].str.contains("datasets/test-").all()
    assert asked.filter(~pl.col("prompt").str.contains(pl.col("question_id"), literal=True)).is_empty()
    gold = asked.explode("gold")
    placed = gold.filter(pl.col("evaluation") == "mdqa20")
    assert placed.height == rows.filter(pl.col("evaluation") == "mdqa20").height
    assert placed["gold"].str.contains("Ada Quill").all()
    assert all(gold in prompt for gold, prompt in placed.select("gold", "prompt").iter_rows())
    assert asked.filter(pl.col("evaluation") == "recall")["gold"].list.len().sum() == 0


def test_any_columns_will_do_that_name_the_row(results: Results) -> None:
    rows = results.predictions("first").select("artefact", "example_id").collect().head(30)
    asked = with_prompts(results.store, rows)
    assert asked.columns == ["artefact", "example_id", "dataset", "prompt", "references", "gold"]
    assert asked["references"].to_list() == [["Ada Quill"]] * 30
    assert with_prompts(results.store, asked).select(asked.columns).equals(asked)
    assert with_prompts(results.store, rows.clear()).schema == asked.schema


def test_rows_without_a_dataset_or_whose_dataset_is_gone_have_no_prompt(results: Results) -> None:
    rows = results.predictions("first").collect()
    (recall,) = (one for one in results.store.committed("dataset") if "test-recall" in one)
    results.store.discard(recall)
    asked = with_prompts(results.store, rows)
    gone = asked.filter(pl.col("evaluation") == "recall")
    assert gone["prompt"].null_count() == gone.height > 0
    assert gone["dataset"].unique().to_list() == [recall]
    assert gone["references"].to_list()[0] == ["Ada Quill"]
    assert asked.filter(pl.col("evaluation") == "mdqa20")["prompt"].null_count() == 0
    unknown = with_prompts(results.store, rows.head(2).with_columns(artefact=pl.lit("predictions/none-0")))
    assert unknown.select("dataset", "prompt").null_count().row(0) == (2, 2)
    assert unknown["gold"].to_list() == [[], []]
