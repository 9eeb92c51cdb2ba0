"""Families of comparisons and the scores beside them: what is split along which axis, and what stays together."""

from __future__ import annotations

import itertools

import polars as pl
import pyarrow as pa
import pytest
from paper_store import tables

from kvray.results import comparisons, frames, stats
from kvray.results.profile import AXES, CONDITION, DEPTH, LENGTH, OVERALL, PAIRWISE, POSITION, SUBTASK, along, unsplit


def as_frame(*parts: pa.Table) -> pl.DataFrame:
    frame = pl.from_arrow(pa.concat_tables(parts))
    assert isinstance(frame, pl.DataFrame)
    return frames.with_models(frame)


@pytest.fixture(scope="module")
def every() -> pl.DataFrame:
    """One finetune and the base on every kind of evaluation that has axes."""
    evaluations = ("mdqa-20", "mdqa-oracle", "flenqa-direct", "ruler", "needle", "mmlu")
    return as_frame(*tables(24, evaluations, ("kv",), (0,)))


@pytest.fixture(scope="module")
def compared(every: pl.DataFrame) -> pl.DataFrame:
    return comparisons.compare_all(every)


def test_family_finds_the_true_effects_and_no_others(make_cell) -> None:
    cells = [make_cell(e, questions=300) for e in ("mdqa20", "recall")]
    cells += [
        make_cell(e, m, s, questions=300) for e in ("mdqa20", "recall") for m in ("ours", "mdqa") for s in range(5)
    ]
    table = comparisons.compare_all(as_frame(*cells))
    overall = table.filter(pl.col("family") == OVERALL)
    verdicts = {(r["evaluation"], r["b"]): r["verdict"] for r in overall.iter_rows(named=True)}
    assert verdicts == {
        ("mdqa20", "ours"): "better",
        ("mdqa20", "mdqa"): "better",
        ("recall", "ours"): "within noise",
        ("recall", "mdqa"): "worse",
    }
    ours = overall.filter((pl.col("b") == "ours") & (pl.col("evaluation") == "mdqa20")).row(0, named=True)
    assert ours["low"] < 0.16 < ours["high"]
    assert ours["questions"] == 300
    assert ours["n"] == 1800


def test_holm_runs_within_each_family(whole: pl.DataFrame) -> None:
    table = comparisons.compare_all(frames.with_models(whole))
    assert table.group_by("family").len().sort("family").rows() == [
        (OVERALL, 8),
        (POSITION.family, 24),
        (PAIRWISE, 12),
    ]
    for _, rows in table.group_by("family"):
        assert stats.holm(rows["p"].to_numpy()).tolist() == pytest.approx(rows["p_holm"].to_list())
    assert table.filter(pl.col("family") == POSITION.family)["position"].null_count() == 0


def test_evaluations_are_split_by_the_axes_that_they_have_several_values_of(compared: pl.DataFrame) -> None:
    found = {(row["family"], row["evaluation"]) for row in compared.iter_rows(named=True)}
    assert found == {
        *((OVERALL, e) for e in ("mdqa-20", "mdqa-oracle", "flenqa-direct", "ruler", "needle", "mmlu")),
        (POSITION.family, "mdqa-20"),  # not the oracle: its one position is the whole
        (LENGTH.family, "flenqa-direct"),
        (LENGTH.family, "ruler"),
        (LENGTH.family, "needle"),
        (DEPTH.family, "needle"),
        (DEPTH.family, "ruler"),
        (SUBTASK.family, "flenqa-direct"),
        (SUBTASK.family, "ruler"),  # not the subjects of mmlu: too many for a table
        (CONDITION.family, "flenqa-direct"),
    }
    grid = compared.filter((pl.col("family") == DEPTH.family) & (pl.col("evaluation") == "needle"))
    assert grid.select("length", "depth").n_unique() == grid.height == 25
    padding = compared.filter(pl.col("family") == CONDITION.family)["condition"].to_list()
    assert sorted(padding) == ["padding=books", "padding=same"]  # dispersion has one value alone


def test_a_split_compares_the_rows_of_its_value_alone(every: pl.DataFrame, compared: pl.DataFrame) -> None:
    wanted = (pl.col("family") == DEPTH.family) & (pl.col("evaluation") == "needle")
    cell = compared.filter(wanted & (pl.col("length") == 8192) & (pl.col("depth") == 50.0)).row(0, named=True)
    rows = every.filter((pl.col("evaluation") == "needle") & (pl.col("length") == 8192) & (pl.col("depth") == 50.0))
    means = dict(rows.group_by("model").agg(pl.col("score").mean()).iter_rows())
    assert cell["difference"] == pytest.approx(means["kv"] - means["base"])
    books = compared.filter(pl.col("condition") == "padding=books").row(0, named=True)
    rows = every.filter(pl.col("condition") == "dispersion=random padding=books")
    assert books["n"] == rows.filter(pl.col("model") == "base").height


def test_scores_are_told_apart_by_axis_and_the_whole_is_told_once(every: pl.DataFrame, compared: pl.DataFrame) -> None:
    table = comparisons.scores(every, compared)
    whole = unsplit(table)
    assert whole.group_by("evaluation", "model").len()["len"].unique().to_list() == [1]
    assert whole.height == 2 * 6
    subjects = along(table, SUBTASK).filter(pl.col("evaluation") == "mmlu")
    assert subjects.height == 2 * 14
    assert subjects["verdict"].null_count() == subjects.height
    lengths = along(table, LENGTH).filter(pl.col("evaluation") == "needle")
    assert lengths["depth"].null_count() == lengths.height == 2 * 5
    # What is split adds up to the whole.
    for axis, evaluation in itertools.product(("position", "length", "subtask", "condition"), whole["evaluation"]):
        parts = along(table, AXES[axis]).filter((pl.col("evaluation") == evaluation) & (pl.col("model") == "kv"))
        all_of_it = whole.filter((pl.col("evaluation") == evaluation) & (pl.col("model") == "kv"))["n"][0]
        assert parts["n"].sum() in (0, all_of_it)


def test_an_evaluation_that_the_base_lacks_is_not_compared(every: pl.DataFrame) -> None:
    rows = every.filter((pl.col("model") == "kv") | (pl.col("evaluation") != "mdqa-20"))
    overall = comparisons.compare_all(rows).filter(pl.col("family") == OVERALL)
    said = dict(overall.select("evaluation", "verdict").iter_rows())
    assert said["mdqa-20"] == "not compared"
    assert said["needle"] != "not compared"


def test_scores_hold_every_cell_overall_and_by_position(whole: pl.DataFrame) -> None:
    rows = frames.with_models(whole)
    table = comparisons.scores(rows, comparisons.compare_all(rows))
    assert table.height == 5 * 2 + 5 * 6
    base = table.filter(pl.col("mixture").is_null())
    assert base["difference"].null_count() == base.height
    tuned = table.filter(pl.col("mixture").is_not_null())
    assert tuned["verdict"].null_count() == 0
    accuracies = {(r["evaluation"], r["position"], r["model"]): r["accuracy"] for r in table.iter_rows(named=True)}
    for row in tuned.iter_rows(named=True):
        base_accuracy = accuracies[row["evaluation"], row["position"], "base"]
        assert row["difference"] == pytest.approx(row["accuracy"] - base_accuracy)
