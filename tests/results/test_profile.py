"""What an evaluation is, told from its rows alone."""

from __future__ import annotations

import polars as pl
import pytest
from paper_store import tables

from kvray.results import frames, profile
from kvray.results.profile import DEPTH, LENGTH, POSITION


@pytest.fixture(scope="module")
def rows() -> pl.DataFrame:
    evaluations = ("mdqa-20", "mdqa-closed", "mdqa-oracle", "recall", "flenqa-direct", "ruler", "needle", "mmlu")
    frame = pl.concat([pl.from_arrow(table) for table in tables(24, evaluations, (), ())])  # type: ignore[type-var]
    return frames.with_models(frame)  # type: ignore[arg-type]


def test_each_kind_is_told_from_the_rows(rows: pl.DataFrame) -> None:
    profiles = profile.profiles(rows)
    assert {evaluation: each.measures for evaluation, each in profiles.items()} == {
        "mdqa-20": "retrieval",
        "mdqa-closed": "knowledge",
        "mdqa-oracle": "ceiling",
        "recall": "knowledge",
        "flenqa-direct": "length",
        "ruler": "retrieval",
        "needle": "retrieval",
        "mmlu": "benchmark",
    }
    assert {
        evaluation: (each.curves, each.grid) for evaluation, each in profiles.items() if each.curves or each.grid
    } == {
        "mdqa-20": ((POSITION,), False),
        "flenqa-direct": ((LENGTH,), False),
        "ruler": ((LENGTH,), True),  # one of its tasks alone has depths
        "needle": ((), True),
    }
    assert {evaluation for evaluation, each in profiles.items() if each.by_subtask} == {"flenqa-direct", "ruler"}
    assert profiles["mmlu"].subtasks == 14
    assert profiles["flenqa-direct"].conditions == ("padding",)
    assert profiles["recall"].outcomes == ("invention", "refusal", "right")
    assert profiles["mdqa-20"].outcomes == ()


def test_depths_at_one_length_are_a_curve_and_depths_drawn_at_random_no_axis(rows: pl.DataFrame) -> None:
    needle = rows.filter(pl.col("evaluation") == "needle")
    assert profile.profiles(needle.filter(pl.col("length") == 4096))["needle"].curves == (DEPTH,)
    scattered = needle.with_columns(pl.int_range(pl.len(), dtype=pl.Int64).cast(pl.Float32).alias("depth"))
    for some in (scattered, scattered.head(12)):
        profiles = profile.profiles(some)["needle"]
        assert (profiles.grid, profiles.curves) == (False, (LENGTH,))


def test_conditions_are_taken_one_at_a_time() -> None:
    frame = pl.DataFrame({"condition": ["dispersion=first padding=books", None, "padding=same"], "x": [1, 2, 3]})
    said = profile.by_condition(frame)
    assert said.rows() == [("dispersion=first", 1), ("padding=books", 1), ("padding=same", 3)]


def test_units_are_called_as_the_task_calls_them(rows: pl.DataFrame) -> None:
    several = rows.filter(pl.col("evaluation") == "mdqa-20").with_columns(task=pl.lit("several_kv"))
    assert profile.profiles(several)["mdqa-20"].title == "mdqa-20 (20 dictionaries)"
    ranges = rows.with_columns(units=pl.when(pl.col("position") == 1).then(3).otherwise(pl.col("units")))
    titles = [each.title for each in profile.profiles(ranges).values()]
    assert titles[:3] == ["mdqa-20 (3 to 20 documents)", "mdqa-closed", "mdqa-oracle (3 documents)"]
    assert profile.profiles(rows)["mdqa-oracle"].title == "mdqa-oracle (1 document)"


@pytest.mark.parametrize(("unit", "one"), [("dictionaries", "1 dictionary"), ("keys", "1 key"), ("data", "1 data")])
def test_a_single_unit_is_in_the_singular(unit: str, one: str) -> None:
    assert profile.Profile("kv", "retrieval", unit, units=(1,)).title == f"kv ({one})"
    assert profile.Profile("kv", "retrieval", unit, units=(1, 3)).title == f"kv (1 to 3 {unit})"


def test_an_unknown_task_measures_what_its_predictions_declare_or_its_rows_suggest(rows: pl.DataFrame) -> None:
    foreign = rows.with_columns(task=pl.lit("elsewhere"))
    suggested = {name: each.measures for name, each in profile.profiles(foreign).items()}
    assert suggested["mdqa-20"] == suggested["needle"] == "retrieval"
    assert (suggested["flenqa-direct"], suggested["recall"]) == ("length", "other")
    declared = {"recall": {"measures": "knowledge", "unit": "facts"}, "needle": {"measures": "of a later version"}}
    profiles = profile.profiles(foreign, declared)
    assert (profiles["recall"].measures, profiles["recall"].unit) == ("knowledge", "facts")
    assert profiles["needle"].measures == "retrieval"


def test_no_rows_have_no_profiles(rows: pl.DataFrame) -> None:
    assert profile.profiles(rows.clear()) == {}
