"""Accuracy and comparisons of frames: pairing, seeds, exclusions, families."""

from __future__ import annotations

import numpy as np
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
        "dataset",
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
    columns = ["questions", "accuracy"]
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


def drawn(model: str, seeds: dict[int, float], questions: int = 80, positions: int = 2) -> pl.DataFrame:
    """Return made-up answers: a share of the questions right, by seed (-1: the base model's)."""
    hard = np.repeat(np.random.default_rng(0).random(questions), positions)
    rng = np.random.default_rng(len(model) + len(seeds))
    parts = []
    for seed, share in seeds.items():
        score = (0.8 * hard + 0.2 * rng.random(hard.size) < share).astype(float)
        parts.append(
            pl.DataFrame(
                {
                    "evaluation": "mdqa",
                    "mixture": None if seed < 0 else model,
                    "finetune": None if seed < 0 else "lora",
                    "seed": None if seed < 0 else seed,
                    "question_id": [f"q{i // positions}" for i in range(hard.size)],
                    "example_id": [f"e{i}" for i in range(hard.size)],
                    "score": score,
                    "model": model,
                },
                schema_overrides={"seed": pl.Int64, "mixture": pl.String, "finetune": pl.String},
            )
        )
    return pl.concat(parts)


def test_several_seeds_are_draws_and_the_verdict_is_about_the_mixture() -> None:
    base = drawn("base", {-1: 0.40})
    luck = drawn("ours", {0: 0.40, 1: 0.80, 2: 0.45})  # one lucky seed
    sure = drawn("sure", {0: 0.70, 1: 0.71, 2: 0.69, 3: 0.70})
    rows = pl.concat([base, luck, sure])
    table = frames.judge(pl.concat([frames.compare(rows, "base", each) for each in ("ours", "sure")]))
    lucky, surely = table.iter_rows(named=True)
    assert (lucky["seeds_a"], lucky["seeds_b"], lucky["test"], lucky["about"]) == (0, 3, "crossed", "mixtures")
    assert lucky["verdict"] == "within noise"
    assert lucky["seed_error"] > 2 * lucky["question_error"]
    assert lucky["high"] - lucky["difference"] > 0.4
    assert lucky["difference"] == pytest.approx(lucky["b_accuracy"] - lucky["a_accuracy"])
    assert surely["verdict"] == "better"
    accuracy = frames.accuracy(rows, ["model"])
    ends = {r["model"]: (r["low"], r["high"]) for r in accuracy.iter_rows(named=True)}
    assert ends["ours"][1] - ends["ours"][0] > 0.6
    assert ends["sure"][1] - ends["sure"][0] < 0.25


def test_one_seed_says_better_of_this_finetune_alone() -> None:
    base, alone = drawn("base", {-1: 0.4}), drawn("ours", {0: 0.8})
    row = frames.judge(frames.compare(pl.concat([base, alone]), "base", "ours")).row(0, named=True)
    assert (row["verdict"], row["about"], row["seeds_b"], row["seed_error"]) == ("better", "finetunes", 1, None)
    other = drawn("mdqa", {0: 0.5, 1: 0.55})
    mixed = frames.judge(frames.compare(pl.concat([alone, other]), "ours", "mdqa")).row(0, named=True)
    assert (mixed["seeds_a"], mixed["seeds_b"], mixed["test"], mixed["about"]) == (1, 2, "crossed", "finetunes")


def test_finetunes_are_compared_seed_by_seed() -> None:
    # What a seed gives both mixtures, a good first adapter say, is no difference between them.
    one = drawn("ours", {0: 0.3, 1: 0.5, 2: 0.7, 3: 0.4})
    same = one.with_columns(model=pl.lit("twin"), mixture=pl.lit("twin"))
    better = same.with_columns(
        score=pl.when(pl.col("question_id").is_in(["q1", "q2", "q3"])).then(1.0).otherwise("score")
    )
    row = frames.compare(pl.concat([one, better]), "ours", "twin").row(0, named=True)
    assert (
        row["seed_error"]
        < 0.02
        < frames.compare(pl.concat([drawn("base", {-1: 0.4}), one]), "base", "ours")["seed_error"][0]
    )
    swapped = better.with_columns(seed=pl.col("seed") + 10)  # none in common: paired by rank
    by_rank = frames.compare(pl.concat([one, swapped]), "ours", "twin").row(0, named=True)
    assert by_rank["seed_error"] == pytest.approx(row["seed_error"])
    assert by_rank["p"] == pytest.approx(row["p"])


def test_a_seed_and_scores_that_are_missing_leave_a_verdict() -> None:
    base, ours = drawn("base", {-1: 0.4}), drawn("ours", {0: 0.7, 1: 0.72, 2: 0.69})
    lacking = ours.filter((pl.col("seed") != 2) | (pl.col("question_id") > "q5"))
    lacking = lacking.with_columns(score=pl.when(pl.col("example_id") == "e3").then(None).otherwise("score"))
    row = frames.judge(frames.compare(pl.concat([base, lacking]), "base", "ours")).row(0, named=True)
    assert (row["verdict"], row["n"], row["excluded"]) == ("better", 159, 2)
    same = pl.concat([drawn("base", {-1: 2.0}), drawn("ours", {0: 2.0, 1: 2.0})])  # all right, both
    row = frames.judge(frames.compare(same, "base", "ours")).row(0, named=True)
    assert (row["p"], row["verdict"], row["about"]) == (1.0, "within noise", "mixtures")
    assert row["low"] < -0.01 and row["high"] > 0.01
    certain = frames.accuracy(same.filter(pl.col("model") == "ours"), ["model"]).row(0, named=True)
    assert certain["low"] < 0.97 and certain["high"] == 1.0
