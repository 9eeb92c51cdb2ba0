"""Accuracy and comparisons of frames: pairing, seeds, exclusions, families."""

from __future__ import annotations

import polars as pl
import pyarrow as pa
import pytest

from kvray.errors import InputError
from kvray.results import frames, stats
from kvray.store.schemas import PREDICTIONS_SCHEMA, SCORES_SCHEMA


def as_frame(*tables: pa.Table) -> pl.DataFrame:
    frame = pl.from_arrow(pa.concat_tables(tables))
    assert isinstance(frame, pl.DataFrame)
    return frame


def test_columns_are_the_contract_and_each_is_described() -> None:
    assert PREDICTIONS_SCHEMA.names == [
        "sweep",
        "evaluation",
        "task",
        "base_model",
        "mixture",
        "finetune",
        "seed",
        "adapter",
        "example_id",
        "question_id",
        "position",
        "units",
        "length",
        "depth",
        "subtask",
        "condition",
        "prompt_tokens",
        "cached_tokens",
        "output_tokens",
        "answer",
        "references",
        "score",
        "outcome",
        "finish_reason",
        "coverage",
        "early",
    ]
    for field in [*PREDICTIONS_SCHEMA, *SCORES_SCHEMA]:
        assert len(field.metadata[b"description"]) > 10


def test_accuracy_counts_rows_questions_seeds_and_exclusions(make_cell) -> None:
    rows = as_frame(make_cell("mdqa20", "ours", 0, too_long=5), make_cell("mdqa20", "ours", 1))
    row = frames.accuracy(rows, ["mixture"]).row(0, named=True)
    assert (row["n"], row["questions"], row["seeds"], row["excluded"]) == (60 * 6 * 2 - 5, 60, 2, 5)
    assert 0 < row["low"] < row["accuracy"] < row["high"] < 1


def test_accuracy_of_one_row_per_question_is_wilson(make_cell) -> None:
    rows = as_frame(make_cell("recall"))
    row = frames.accuracy(rows, []).row(0, named=True)
    assert row["accuracy"] == pytest.approx(rows["score"].mean())
    assert (row["low"], row["high"]) == pytest.approx(stats.wilson(row["accuracy"], 60))


def test_an_example_weighs_one_whatever_its_seeds(make_cell) -> None:
    one = as_frame(make_cell("recall", "ours", 0))
    twice = pl.concat([one, one.with_columns(pl.lit(1, dtype=pl.Int64).alias("seed"))])
    columns = ["questions", "accuracy", "low", "high"]
    assert frames.accuracy(one, []).select(columns).equals(frames.accuracy(twice, []).select(columns))


def test_rows_without_a_score_leave_no_number(make_cell) -> None:
    row = frames.accuracy(as_frame(make_cell("recall", questions=4, too_long=4)), ["evaluation"]).row(0, named=True)
    assert (row["n"], row["excluded"], row["accuracy"], row["low"]) == (0, 4, None, None)


def test_an_unknown_column_is_refused_by_name(whole: pl.DataFrame) -> None:
    with pytest.raises(InputError, match="postion"):
        frames.accuracy(whole, ["postion"])


def test_pairing_drops_and_counts_what_only_one_model_answered(make_cell) -> None:
    base, ours = as_frame(make_cell("recall")), as_frame(make_cell("recall", "ours", 0))
    rows = frames.with_models(pl.concat([base.head(50), ours.tail(45)]))
    row = frames.compare(rows, "base", "ours").row(0, named=True)
    assert (row["n"], row["unmatched"]) == (35, 25)
    both = base.head(50).join(ours.tail(45), on="example_id")
    assert row["difference"] == pytest.approx((both["score_right"] - both["score"]).mean())
    assert row["test"] == "McNemar"
    assert row["p"] == stats.mcnemar(row["better"], row["worse"])


def test_excluded_rows_are_no_pairs(make_cell) -> None:
    rows = frames.with_models(as_frame(make_cell("recall"), make_cell("recall", "ours", 0, too_long=7)))
    row = frames.compare(rows, "base", "ours").row(0, named=True)
    assert (row["n"], row["unmatched"], row["excluded"]) == (53, 7, 7)


def test_models_that_share_no_example_are_not_compared(make_cell) -> None:
    rows = frames.with_models(as_frame(make_cell("recall"), make_cell("mdqa20", "ours", 0)))
    judged = frames.judge(frames.compare(rows, "base", "ours"))
    assert judged["verdict"].to_list() == ["not compared", "not compared"]
    assert judged["p_holm"].null_count() == 2


def test_variants_of_one_mixture_are_models_of_their_own(make_cell) -> None:
    ways = ["lora[learning_rate=5e-06]", "lora[learning_rate=1e-05]"]
    rows = as_frame(make_cell("recall"), *(make_cell("recall", "ours", 0, finetune=way) for way in ways))
    found = frames.models(frames.with_models(rows))
    assert found == ["ours [learning_rate=5e-06]", "ours [learning_rate=1e-05]"]
    mixed = as_frame(make_cell("recall", "ours", 0), make_cell("recall", "ours", 0, finetune="full"))
    assert frames.models(frames.with_models(mixed)) == ["ours lora", "ours full"]
    assert frames.models(frames.with_models(as_frame(make_cell("recall", "ours", 0)))) == ["ours"]


def test_every_name_stands_for_one_model_and_base_for_none_but_the_base(make_cell) -> None:
    ways = [("base", "lora"), ("base (mixture)", "lora"), ("x", "lora[a=1]"), ("x", "lora[a=2]"), ("x [a=2]", "lora")]
    cells = [make_cell("recall", mixture, 0, questions=4, finetune=way) for mixture, way in ways]
    rows = frames.with_models(as_frame(make_cell("recall", questions=4), *cells))
    pairs = rows.select("mixture", "finetune", "model").unique(maintain_order=True)
    assert pairs["model"].n_unique() == pairs.height == 6
    assert rows.filter(pl.col("model") == frames.BASE)["mixture"].null_count() == 4
    assert frames.models(rows)[:2] == ["base (mixture)", "base (mixture) (mixture)"]
