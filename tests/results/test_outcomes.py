"""Kinds of answers, and shares of inventions with honest intervals."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from kvray.results import outcomes, stats
from kvray.results.stats import ratio, ratio_difference


def answers(model: str, given: str, seed: int = 0) -> pl.DataFrame:
    """Rows of one model, an answer per letter: R right, F refusal, I invention, - not run."""
    names = {"R": "right", "F": "refusal", "I": "invention", "-": None}
    return pl.DataFrame(
        {
            "evaluation": "recall",
            "model": model,
            "seed": seed,
            "example_id": [f"e{i}" for i in range(len(given))],
            "question_id": [f"q{i}" for i in range(len(given))],
            "outcome": [names[letter] for letter in given],
        },
        schema_overrides={"outcome": pl.String},
    )


def test_shares_add_up_and_leave_out_what_was_not_run() -> None:
    rows = pl.concat([answers("base", "RRFI-"), answers("ours", "RIIII")])
    table = outcomes.shares(rows, "recall")
    assert table["outcome"].to_list() == ["right", "refusal", "invention"] * 2
    assert table["share"].to_list() == pytest.approx([0.5, 0.25, 0.25, 0.2, 0.0, 0.8])
    assert table["n"].to_list() == [4, 4, 4, 5, 5, 5]


def test_inventions_are_a_share_of_the_wrong_answers() -> None:
    rows = pl.concat([answers("base", "RRFFI" * 20), answers("ours", "RIIFI" * 20)])
    base, ours = outcomes.inventions(rows, "recall").iter_rows(named=True)
    assert (base["wrong"], base["share"]) == (60, pytest.approx(1 / 3))
    assert (ours["wrong"], ours["share"]) == (80, pytest.approx(3 / 4))
    assert base["difference"] is None
    assert ours["difference"] == pytest.approx(3 / 4 - 1 / 3)
    assert 0 < ours["difference_low"] < ours["difference"] < ours["difference_high"] < 1


def test_a_change_compares_common_examples_alone() -> None:
    rows = pl.concat([answers("base", "FI" * 10 + "F" * 30), answers("ours", "II" * 10)])
    ours = outcomes.inventions(rows, "recall").row(1, named=True)
    assert ours["difference"] == pytest.approx(1.0 - 0.5)


def test_no_wrong_answer_has_no_share() -> None:
    rows = pl.concat([answers("base", "RRR"), answers("ours", "RRI")])
    base, ours = outcomes.inventions(rows, "recall").iter_rows(named=True)
    assert (base["wrong"], base["share"]) == (0, None)
    assert (ours["share"], ours["difference"]) == (1.0, None)


def test_seeds_are_averaged_example_by_example() -> None:
    one = pl.concat([answers("base", "RFII"), answers("ours", "RFII", 0)])
    two = pl.concat([one, answers("ours", "RFII", 1)])
    first, second = (outcomes.inventions(rows, "recall").row(1, named=True) for rows in (one, two))
    assert first["share"] == second["share"]
    assert (first["low"], first["high"]) == (second["low"], second["high"])


def test_kinds_go_from_what_is_wanted_to_what_is_feared() -> None:
    said = outcomes.ordered(["invention", "wrong", "odd", "refusal", "right"])
    assert said == ["right", "refusal", "wrong", "odd", "invention"]


def test_a_ratio_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    questions = np.arange(80)
    hits = 0
    for _ in range(60):
        whole = (rng.random(80) < 0.6).astype(float)
        part = whole * (rng.random(80) < 0.7)
        found = ratio(part, whole, questions)
        assert found is not None
        hits += found.low <= 0.7 <= found.high
    assert hits >= 51


def test_where_all_are_alike_an_interval_claims_no_certainty() -> None:
    ones = np.ones(12)
    found = ratio(ones, ones, np.arange(12))
    assert found is not None
    assert (found.mean, found.high) == (1.0, 1.0)
    assert found.low == stats.wilson(1.0, 12)[0] < 0.8
    same = ratio_difference((ones, ones), (ones, ones), np.arange(12))
    assert same is not None
    assert same.low < -0.1 < 0.1 < same.high
    assert ratio(np.zeros(3), np.zeros(3), np.arange(3)) is None
    assert ratio_difference((ones, ones), (0 * ones, 0 * ones), np.arange(12)) is None
