"""Recovery ratios: the right questions of the right evaluations, intervals that cover, and what is undefined."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import paper_store
import polars as pl
import pytest

import kvray.results
from kvray.errors import InputError
from kvray.results import stats
from kvray.results.recovery import recovery
from kvray.store.store import Store

AXES = {"position": pl.Int32, "length": pl.Int32, "depth": pl.Float64, "subtask": pl.String, "condition": pl.String}


def rows(
    evaluation: str, units: int, scores: dict[str, list[float]], model: str = "base", seed: int = 0
) -> pl.DataFrame:
    """Return predictions of mdqa; ``scores`` has, by question, those at each position."""
    made: list[dict[str, Any]] = [
        {
            "evaluation": evaluation,
            "task": "mdqa",
            "model": model,
            "seed": seed,
            "question_id": question,
            "example_id": f"{question}-{position}",
            "units": units,
            "score": score,
            "outcome": "right",
            **dict.fromkeys(AXES),
            "position": position if units else None,
        }
        for question, given in scores.items()
        for position, score in enumerate(given, start=1)
    ]
    return pl.DataFrame(made, schema_overrides=AXES)


def three(**scores: dict[str, list[float]]) -> pl.DataFrame:
    units = {"closed": 0, "oracle": 1}
    return pl.concat([rows(name, units.get(name, 20), given) for name, given in scores.items()])


def asked(*scores: float) -> dict[str, list[float]]:
    return {f"q{number:02d}": [score] for number, score in enumerate(scores)}


def test_the_ratio_is_of_means_over_the_questions_asked_in_all_three_ways() -> None:
    context = {f"q{number:02d}": [1.0 if number < 12 else 0.0, 1.0 if number < 6 else 0.0] for number in range(20)}
    closed, oracle = asked(*[1.0] * 2, *[0.0] * 18), asked(*[1.0] * 18, *[0.0] * 2)
    closed |= {"alone": [1.0]}
    table = recovery(three(mdqa=context | {"another": [0.0, 0.0]}, closed=closed, oracle=oracle))
    (row,) = table.to_dicts()
    assert (row["evaluation"], row["knowledge"], row["ceiling"], row["model"]) == ("mdqa", "closed", "oracle", "base")
    assert row["questions"] == 20
    assert (row["accuracy"], row["closed_book"], row["oracle"]) == pytest.approx((0.45, 0.1, 0.9))
    assert row["recovery"] == pytest.approx((0.45 - 0.1) / (0.9 - 0.1))
    assert 0 < row["low"] < row["recovery"] < row["high"] < 1 and 0 < row["gap_low"] < 0.8 < row["gap_high"]
    split = recovery(three(mdqa=context, closed=closed, oracle=oracle), ["position"])
    assert split["position"].to_list() == [1, 2]
    assert split["recovery"].to_list() == pytest.approx([(0.6 - 0.1) / 0.8, (0.3 - 0.1) / 0.8])


def test_there_is_no_ratio_where_the_document_does_not_clearly_help() -> None:
    closed, oracle = asked(*[1.0] * 5, *[0.0] * 5), asked(*[1.0] * 6, *[0.0] * 4)
    (row,) = recovery(three(mdqa=oracle, closed=closed, oracle=oracle)).to_dicts()
    assert row["gap_low"] <= 0 and row["oracle"] == 0.6
    assert (row["recovery"], row["low"], row["high"]) == (None, None, None)
    assert recovery(three(mdqa=oracle, closed=closed)).height == 0
    assert recovery(three(mdqa=oracle, closed={"x": [1.0]}, oracle=oracle)).height == 0


def test_the_evaluation_with_most_questions_in_common_is_taken_and_each_model_has_its_own() -> None:
    data = three(mdqa=asked(*[1.0] * 10), closed=asked(*[0.0] * 4), oracle=asked(*[1.0] * 10))
    data = pl.concat([data, rows("closed-all", 0, asked(*[0.0] * 10))])
    data = pl.concat([data, rows("mdqa", 20, asked(*[1.0] * 10), "kv"), rows("oracle", 1, asked(*[1.0] * 10), "kv")])
    (row,) = recovery(data).to_dicts()
    assert (row["knowledge"], row["model"], row["questions"]) == ("closed-all", "base", 10)
    assert row["recovery"] == 1.0 and row["low"] < 1.0 < row["high"]  # alike everywhere is no certainty


def test_seeds_are_averaged_before_anything_else() -> None:
    first = three(mdqa=asked(1.0, 1.0, 0.0, 0.0), closed=asked(*[0.0] * 4), oracle=asked(*[1.0] * 4))
    second = rows("mdqa", 20, asked(1.0, 0.0, 1.0, 0.0), seed=1)
    (row,) = recovery(pl.concat([first, second])).to_dicts()
    assert row["questions"] == 4 and row["recovery"] == 0.5


def test_intervals_of_the_ratio_cover_the_truth() -> None:
    rng, questions, draws = np.random.default_rng(9), 120, 300

    def luck(number: int) -> Any:
        """Draw what three ways of asking find easy, correlated by question. Shape ``(3, number)``."""
        return 0.6 * rng.random(number) + 0.4 * rng.random((3, number))

    cuts = [np.quantile(luck(100_000)[0], accuracy) for accuracy in (0.25, 0.55, 0.85)]
    truth, inside = (0.55 - 0.25) / (0.85 - 0.25), 0
    for _ in range(draws):
        closed, context, oracle = (luck(questions) < np.array(cuts)[:, None]).astype(float)
        found = stats.gap_ratio(context - closed, oracle - closed, np.arange(questions))
        inside += found.low <= truth <= found.high
    assert 0.92 <= inside / draws <= 0.98


def test_results_of_a_store_have_the_ratio_of_every_retrieval(tmp_path: Path) -> None:
    store = Store(tmp_path)
    evaluations = ("mdqa-20", "mdqa-20-retrieved", "mdqa-closed", "mdqa-oracle", "recall", "gsm8k")
    paper_store.commit(store, questions=60, mixtures=("kv",), evaluations=evaluations)
    table = kvray.results.open(store).recovery()
    assert table["evaluation"].to_list() == ["mdqa-20"] * 2 + ["mdqa-20-retrieved"] * 2
    assert table["model"].to_list() == ["base", "kv"] * 2
    assert set(table["knowledge"]) == {"mdqa-closed"} and set(table["ceiling"]) == {"mdqa-oracle"}
    base, kv, *_ = table["recovery"]
    assert 0.2 < base < kv < 1.0
    by_position = kvray.results.open(store).recovery(by=["position"])
    assert by_position.filter(pl.col("evaluation") == "mdqa-20")["position"].to_list() == [1, 2, 5, 10, 15, 20] * 2
    with pytest.raises(InputError, match="no column places"):
        kvray.results.open(store).recovery(by=["places"])
