"""Rows of predictions with what was asked: prompts, references and the place of the answer, from the dataset."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest

from kvray.errors import InputError
from kvray.results import frames
from kvray.results.examples import COLUMNS, Choice, with_prompts
from kvray.results.reader import Results
from kvray.store.schemas import CHAT_SCHEMA, PREFIX_SCHEMA
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
    assert asked.columns == [
        *("artefact", "example_id", "dataset", "history", "prompt", "answer_prefix", "references", "gold")
    ]
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
    unknown = with_prompts(
        results.store, rows.head(2).drop("dataset").with_columns(artefact=pl.lit("predictions/none-0"))
    )
    assert unknown.select("dataset", "prompt").null_count().row(0) == (2, 2)
    assert unknown["gold"].to_list() == [[], []]


def test_examples_are_chosen_by_place_and_by_how_they_went(results: Results) -> None:
    found = results.examples("mdqa20", "ours", seed=1, position=20, right=False)
    rows = frames.with_models(results.predictions("first").collect())
    chosen = (pl.col("evaluation") == "mdqa20") & (pl.col("model") == "ours") & (pl.col("seed") == 1)
    assert set(found["example_id"]) == set(
        rows.filter(chosen & (pl.col("position") == 20) & (pl.col("score") < 1))["example_id"]
    )
    assert found.columns == COLUMNS and found["answer"].unique().to_list() == ["no idea"]
    assert all(gold in prompt for gold, prompt in found.explode("gold").select("gold", "prompt").iter_rows())
    assert results.examples(limit=7).height == 7
    assert results.examples("recall", limit=2)["gold"].to_list() == [[], []]


def test_flipped_examples_are_those_that_the_base_model_answers_otherwise(results: Results) -> None:
    lost, won = (results.examples("mdqa20", "mdqa", flipped=kind) for kind in ("lost", "won"))
    assert lost.height and won.height
    assert set(lost.select("score", "base_score").iter_rows()) == {(0.0, 1.0)}
    assert set(won.select("score", "base_score").iter_rows()) == {(1.0, 0.0)}
    assert set(lost["base_answer"]) == {"Ada Quill"} and set(won["base_answer"]) == {"no idea"}
    counted = results.compare("base", "mdqa").filter(pl.col("evaluation") == "mdqa20").row(0, named=True)
    assert counted["n"] == 12 * 6  # seeds averaged, here each counts
    assert lost.height + won.height <= 2 * counted["n"]


@pytest.mark.parametrize(
    ("chosen", "told"),
    [
        ({"evaluation": "mdqa2"}, r"evaluation: found 'mdqa2'; expected one of: mdqa20, recall; did you mean 'mdqa20'"),
        ({"model": "our"}, r"model: found 'our'; expected one of: base, ours, .*did you mean 'ours'"),
        ({"evaluation": "mdqa20", "position": 3}, r"position: found 3; expected one of: 1, 2, 5, 10, 15, 20$"),
        ({"evaluation": "recall", "position": 1}, r"position: found 1; expected one of: there is none"),
        ({"seed": 7}, r"seed: found 7; expected one of: 0, 1"),
        ({"flipped": "loss"}, r"flipped: found 'loss'; expected one of: lost, won; did you mean 'lost'"),
        ({"sweep": "frist"}, r"'frist': not in the store"),
    ],
)
def test_a_value_that_no_row_has_is_refused_with_those_that_there_are(
    results: Results, chosen: dict[str, object], told: str
) -> None:
    with pytest.raises(InputError, match=told):
        results.examples(**chosen)  # type: ignore[arg-type]


def test_without_answers_of_the_base_model_nothing_is_flipped(tmp_path: Path, make_sweep) -> None:
    store = Store(tmp_path)
    make_sweep(store, questions=4, skip=["mdqa20-base", "recall-base"], mixtures=["ours"])
    results = Results(store)
    with pytest.raises(InputError, match="the base model has not answered"):
        results.examples("mdqa20", flipped="lost")
    assert results.examples("mdqa20", right=True)["base_answer"].null_count() > 0


def test_a_depth_is_found_in_single_precision_and_a_condition_among_others() -> None:
    rows = pl.DataFrame(
        {
            "evaluation": ["e"] * 3,
            "example_id": ["a", "b", "c"],
            "model": ["base"] * 3,
            "answer": ["x"] * 3,
            "outcome": ["right", "wrong", "wrong"],
            "score": [1.0, 0.0, None],
            "depth": pl.Series([33.3, 66.7, None], dtype=pl.Float32),
            "condition": ["dispersion=random padding=books", "padding=same", None],
        }
    )
    assert Choice(depth=33.3).places(rows)["example_id"].to_list() == ["a"]
    assert Choice(condition="padding=books").places(rows)["example_id"].to_list() == ["a"]
    with pytest.raises(InputError, match=r"depth: found 50; expected one of: 33\.3, 66\.7$"):
        Choice(depth=50).places(rows)
    with pytest.raises(InputError, match=r"expected one of: dispersion=random, padding=books, padding=same; did you"):
        Choice(condition="padding=book").places(rows)
    placed = Choice().places(rows)
    # What was not run is neither right nor wrong.
    assert Choice(right=True).answers(placed).height == Choice(right=False).answers(placed).height == 1


def test_chats_come_with_the_messages_before_and_ruler_with_the_beginning_of_its_answer(tmp_path: Path) -> None:
    store, history = Store(tmp_path), '[{"role": "user", "content": "hello"}]'
    row = {"example_id": "a", "question_id": "a", "units": 0, "answer": "x", "references": ["x"], "prompt_tokens": 1}
    for name, schema, more in (
        ("chats", CHAT_SCHEMA, {"prompt": "and now?", "history": history}),
        ("ruler", PREFIX_SCHEMA, {"prompt": "which?", "answer_prefix": "It is"}),
    ):
        identity = {"id": f"datasets/{name}-0", "kind": "dataset", "name": name, "fingerprint": "0" * 64, "needs": []}
        file = store.write(
            identity["id"], "data/shard-00000.parquet", pa.Table.from_pylist([row | more], schema=schema)
        )
        store.commit(**identity, recipe={"task": {"task": "own:Task"}}, files=[file])
    rows = pl.DataFrame({"dataset": ["datasets/ruler-0", "datasets/chats-0"], "example_id": ["a", "a"]})
    asked = with_prompts(store, rows)
    assert asked.select("history", "prompt", "answer_prefix").rows() == [
        (None, "which?", "It is"),
        (history, "and now?", None),
    ]
    assert asked["gold"].to_list() == [[], []], "of a task that is not at hand nothing is known"
