"""Profiles of evaluations: what one measures, what its units are called, which axes its accuracy is shown along."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

import polars as pl

from kvray.results.axes import AXES, DEPTH, LENGTH, POSITION, Axis
from kvray.tasks import load_all
from kvray.tasks.base import REGISTRY, Measure

MOST_SUBTASKS = 12
"""Most subtasks, or values of a condition, that a table shows; more (the subjects of MMLU) stay together."""
MOST_PLACES = 50
"""Most lengths, and most depths, of a grid; more were drawn at random and are no axis."""
_FILLED = 0.6
"""Least share of a grid's cells that have rows: depths drawn at random fill hardly any."""


Declared = Mapping[str, Mapping[str, Any]]
"""What the manifests of the predictions declare, by evaluation: "measures" and "unit"."""


def profiles(predictions: pl.DataFrame, declared: Declared | None = None) -> dict[str, Profile]:
    """Return the profile of each evaluation by name, in the order of their first rows.

    What it measures is as declared, else as its task defines, else (for an unknown task) as the rows suggest.
    """
    parts = predictions.partition_by("evaluation", maintain_order=True, as_dict=True)
    return {
        str(key[0]): _profile(str(key[0]), rows, (declared or {}).get(str(key[0]), {})) for key, rows in parts.items()
    }


def bounds(
    predictions: pl.DataFrame, profiles: Mapping[str, Profile], evaluation: str
) -> dict[tuple[str, Measure], pl.DataFrame]:
    """Return the closed-book and oracle predictions on an evaluation's questions: its lower and upper bounds.

    Keys are (evaluation, "knowledge" or "ceiling"); only evaluations of gold positions have bounds.
    """
    rows = predictions.filter((pl.col("evaluation") == evaluation) & pl.col("position").is_not_null())
    if profiles[evaluation].measures != "retrieval" or not rows.height:
        return {}
    asked = rows["question_id"].unique().to_list()
    shared = {
        (name, other.measures): predictions.filter((pl.col("evaluation") == name) & pl.col("question_id").is_in(asked))
        for name, other in profiles.items()
        if other.measures in ("knowledge", "ceiling")
    }
    return {key: theirs for key, theirs in shared.items() if theirs.height}


def by_condition(rows: pl.DataFrame) -> pl.DataFrame:
    """Return each row once per condition, with that condition alone ("padding=books"); rows without one are dropped."""
    split = rows.with_columns(pl.col("condition").str.split(" ")).explode("condition")
    return split.filter(pl.col("condition").is_not_null() & (pl.col("condition") != ""))


def _profile(name: str, rows: pl.DataFrame, declared: Mapping[str, Any]) -> Profile:
    values = {axis: rows[axis].drop_nulls().n_unique() for axis in AXES}
    placed = 1 < values["depth"] <= MOST_PLACES
    cells = rows.select("length", "depth").drop_nulls().n_unique()
    filled = cells > _FILLED * values["length"] * values["depth"]
    grid = placed and filled and 1 < values["length"] <= MOST_PLACES
    # Only one of RULER's variants has depths: a curve by length shows all of them, besides the grid.
    every_row_in_grid = grid and rows["depth"].null_count() == 0
    curves = {
        POSITION: values["position"] > 1,
        LENGTH: values["length"] > 1 and not every_row_in_grid,
        DEPTH: placed and values["length"] <= 1,
    }
    outcomes = rows["outcome"].drop_nulls().unique().sort().to_list()
    load_all()
    task, units = REGISTRY.get(rows["task"][0]), rows["units"].unique().sort().to_list()
    measures = task.measures(units) if task else _suggested(rows)
    return Profile(
        name=name,
        measures=declared["measures"] if declared.get("measures") in get_args(Measure) else measures,
        unit=str(declared.get("unit") or (task.UNIT if task else "units")),
        units=tuple(number for number in units if number),
        curves=tuple(axis for axis, drawn in curves.items() if drawn),
        grid=grid,
        subtasks=values["subtask"] if values["subtask"] > 1 else 0,
        conditions=_conditions(rows),
        outcomes=tuple(outcomes) if set(outcomes) - {"right", "wrong"} else (),
    )


def _suggested(rows: pl.DataFrame) -> Measure:
    if rows["position"].is_not_null().any() or rows["depth"].is_not_null().any():
        return "retrieval"
    return "length" if rows["length"].drop_nulls().n_unique() > 1 else "other"


def _conditions(rows: pl.DataFrame) -> tuple[str, ...]:
    values = by_condition(rows.select("condition").unique())["condition"].unique().sort().to_list()
    names = [value.partition("=")[0] for value in values]
    return tuple(name for name in dict.fromkeys(names) if 1 < names.count(name) <= MOST_SUBTASKS)


def _singular(noun: str) -> str:
    return f"{noun.removesuffix('ies')}y" if noun.endswith("ies") else noun.removesuffix("s")


@dataclass(frozen=True)
class Profile:
    """What an evaluation measures and how its accuracy can be split.

    Attributes:
        measures: "retrieval" (gold positions, needles), "length" (accuracy by context length), "knowledge" (closed
            book), "ceiling" (the gold document alone), "benchmark" (of lm-evaluation-harness) or "other".
        unit: plural noun for what the prompts hold: "documents".
        units: every number of them that occurs, sorted.
        curves: axes with several values, which accuracy is drawn along.
        grid: whether a heatmap of several depths at several lengths is drawn.
        subtasks: their number; 0 where all examples are of one.
        conditions: names of those with several values, but few enough for a table.
        outcomes: kinds of answers, where there are more than right and wrong.
    """

    name: str
    measures: Measure
    unit: str = "units"
    units: tuple[int, ...] = ()
    curves: tuple[Axis, ...] = ()
    grid: bool = False
    subtasks: int = 0
    conditions: tuple[str, ...] = ()
    outcomes: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """Name with the size: "mdqa (20 documents)"."""
        if not self.units:
            return self.name
        unit = _singular(self.unit) if self.units == (1,) else self.unit
        return f"{self.name} ({' to '.join(map(str, dict.fromkeys([self.units[0], self.units[-1]])))} {unit})"

    @property
    def by_subtask(self) -> bool:
        """Whether its subtasks are few enough for a table."""
        return 1 < self.subtasks <= MOST_SUBTASKS

    def splits(self, axis: Axis) -> bool:
        """Return whether models are compared along an axis."""
        split = {"subtask": self.by_subtask, "condition": bool(self.conditions), "position": False}
        return axis in self.curves or split.get(axis.name, self.grid)
