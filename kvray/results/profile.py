"""What an evaluation measures and along what it can be drawn, told from its predictions alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import polars as pl

Measure = Literal["retrieval", "length", "knowledge", "ceiling", "benchmark", "other"]
Axis = Literal["position", "length", "depth"]

MOST_SUBTASKS = 12
"""Subtasks or values of a condition that a table shows; more (the subjects of MMLU) stay together."""
MOST_ALONG = 50
"""Lengths, and depths, of a grid; where there are more they were drawn at random, and are no axis."""
_FILLED = 0.6
"""Share of a grid's cells that have rows at least: depths drawn at random fill none."""
_MDQA = "mdqa"
_RECALL = "recall"
_RULER = "ruler"
_BENCHMARK = "lm_eval"


def kinds(predictions: pl.DataFrame) -> dict[str, Kind]:
    """Return the kind of every evaluation of the predictions, in the order of their first rows."""
    parts = predictions.partition_by("evaluation", maintain_order=True, as_dict=True)
    return {str(key[0]): _kind(rows) for key, rows in parts.items()}


def bounds(predictions: pl.DataFrame, found: Mapping[str, Kind], evaluation: str) -> dict[str, pl.DataFrame]:
    """Return what the floors and ceilings of an evaluation of documents by position are told by.

    They are evaluations that ask some of the same questions with no document, or with the gold one alone.

    Returns:
        The predictions of those questions, under "evaluation (closed book)" or "evaluation (one document)".
    """
    rows = predictions.filter(pl.col("evaluation") == evaluation)
    if found[evaluation].measures != "retrieval" or not (rows["task"] == _MDQA).any():
        return {}
    asked = rows["question_id"].unique().to_list()
    said: dict[str, pl.DataFrame] = {}
    for other, kind in found.items():
        if kind.measures in ("knowledge", "ceiling"):
            theirs = predictions.filter((pl.col("evaluation") == other) & pl.col("question_id").is_in(asked))
            if theirs.height:
                said[f"{other} ({'closed book' if kind.measures == 'knowledge' else 'one document'})"] = theirs
    return said


def by_condition(rows: pl.DataFrame) -> pl.DataFrame:
    """Return the rows once per condition, ``condition`` being that one alone ("padding=books"); none without one."""
    split = rows.with_columns(pl.col("condition").str.split(" ")).explode("condition")
    return split.filter(pl.col("condition").is_not_null() & (pl.col("condition") != ""))


def _kind(rows: pl.DataFrame) -> Kind:
    several = {axis: _values(rows, axis) for axis in ("position", "length", "depth")}
    placed = 1 < several["depth"] <= MOST_ALONG
    cells = rows.select("length", "depth").drop_nulls().n_unique()
    filled = cells > _FILLED * several["length"] * several["depth"]
    grid = placed and filled and 1 < several["length"] <= MOST_ALONG
    # Of RULER's variants one alone has depths: its lengths are drawn for all of them, and the grid beside.
    whole = grid and rows["depth"].null_count() == 0
    axes: list[Axis] = []
    if several["position"] > 1:
        axes.append("position")
    if several["length"] > 1 and not whole:
        axes.append("length")
    if placed and several["length"] <= 1:
        axes.append("depth")
    outcomes = rows["outcome"].drop_nulls().unique().sort().to_list()
    subtasks = _values(rows, "subtask")
    return Kind(
        measures=_measure(rows),
        axes=tuple(axes),
        grid=grid,
        subtasks=subtasks if subtasks > 1 else 0,
        conditions=_conditions(rows),
        outcomes=tuple(outcomes) if set(outcomes) - {"right", "wrong"} else (),
    )


def _measure(rows: pl.DataFrame) -> Measure:
    task, units = rows["task"][0], set(rows["units"].unique().to_list())
    if task == _BENCHMARK:
        return "benchmark"
    if task == _RECALL or (task == _MDQA and units == {0}):
        return "knowledge"
    if task == _MDQA and units == {1}:
        return "ceiling"
    if task == _RULER or rows["position"].is_not_null().any() or rows["depth"].is_not_null().any():
        return "retrieval"
    return "length" if _values(rows, "length") > 1 else "other"


def _values(rows: pl.DataFrame, column: str) -> int:
    return rows[column].drop_nulls().n_unique()


def _conditions(rows: pl.DataFrame) -> tuple[str, ...]:
    """Return the names of the conditions that take several values, not too many."""
    said = by_condition(rows.select("condition").unique())["condition"].unique().sort().to_list()
    names = [condition.partition("=")[0] for condition in said]
    return tuple(name for name in dict.fromkeys(names) if 1 < names.count(name) <= MOST_SUBTASKS)


@dataclass(frozen=True)
class Kind:
    """What an evaluation is.

    Attributes:
        measures: "retrieval" (gold positions, needles), "length" (has lengths alone), "knowledge" (closed book),
            "ceiling" (the gold document alone), "benchmark" (of lm-evaluation-harness) or "other".
        axes: what its accuracy is drawn along as curves: those with several values.
        grid: whether it has several depths at several lengths, a heatmap.
        subtasks: how many subtasks there are; 0 where all is one.
        conditions: names of the conditions that a table is split by.
        outcomes: kinds of answers, where there are more than right and wrong.
    """

    measures: Measure
    axes: tuple[Axis, ...] = ()
    grid: bool = False
    subtasks: int = 0
    conditions: tuple[str, ...] = ()
    outcomes: tuple[str, ...] = ()

    @property
    def by_subtask(self) -> bool:
        """Whether a table is split by subtask."""
        return 1 < self.subtasks <= MOST_SUBTASKS
