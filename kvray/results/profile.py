"""Evaluations: what one measures, what its units are called, and the axes along which its accuracy is shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

import polars as pl

from kvray.store.schemas import SCORES_SCHEMA
from kvray.tasks import load_all
from kvray.tasks.base import REGISTRY, Measure

MOST_SUBTASKS = 13
"""Most subtasks, or values of a condition, that a table shows: RULER's. More (the subjects of MMLU) stay together."""
MOST_PLACES = 50
"""Most lengths, and most depths, of a grid; more were drawn at random and are no axis."""
_FILLED = 0.6  # least share of a grid's cells that have rows: depths drawn at random fill hardly any
OVERALL, PAIRWISE = "against the base", "pairwise"
"""Families of comparisons over whole evaluations; :attr:`Axis.family` names the others."""


@dataclass(frozen=True)
class Axis:
    """A column by which the examples of an evaluation differ; null where an evaluation has no such axis.

    ``title`` names it in sentences, ``value`` formats one value for a table's header, ``scale`` is the label with the
    unit under a figure ("": tables alone), and comparisons are split by the axes ``beside`` it as well.
    """

    name: str
    title: str
    value: str = "{}"
    scale: str = ""
    beside: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that comparisons along this axis are split by."""
        return (*self.beside, self.name)

    @property
    def family(self) -> str:
        return f"{OVERALL}, by {' and '.join(self.columns)}"


POSITION = Axis("position", "gold position", "position {}", "gold position (1 = first)")
LENGTH = Axis("length", "context length", "{:,} tokens", "context length, tokens")
DEPTH = Axis("depth", "needle depth", "{:g} %", "depth of the needle, % of the context", ("length",))
SUBTASK = Axis("subtask", "subtask")
CONDITION = Axis("condition", "condition")
AXES = {axis.name: axis for axis in (POSITION, LENGTH, DEPTH, SUBTASK, CONDITION)}
"""Every axis, by its column; all are null in a row over a whole evaluation."""
CURVES = tuple(axis for axis in AXES.values() if axis.scale)
"""Axes that accuracy is drawn along."""
_SCORES = pl.DataFrame(SCORES_SCHEMA.empty_table()).schema
TYPES = {name: _SCORES[name] for name in AXES}
"""Polars type of each axis."""


def profiles(predictions: pl.DataFrame, declared: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, Profile]:
    """Return the profile of each evaluation by name, in the order of their first rows.

    ``declared`` is what manifests say ("measures", "unit"); else an evaluation measures what its task or its rows say.
    """
    parts = predictions.partition_by("evaluation", maintain_order=True, as_dict=True)
    return {
        str(name): _profile(str(name), rows, (declared or {}).get(str(name), {})) for (name,), rows in parts.items()
    }


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
    # Only some of RULER's tasks have depths: a curve by length shows all of them, besides the grid.
    every_row_in_grid = grid and rows["depth"].null_count() == 0
    curves = {
        POSITION: values["position"] > 1,
        LENGTH: values["length"] > 1 and not every_row_in_grid,
        DEPTH: placed and values["length"] <= 1,
    }
    conditions = by_condition(rows.select("condition").unique())["condition"].unique().sort()
    names = [condition.partition("=")[0] for condition in conditions]
    outcomes = rows["outcome"].drop_nulls().unique().sort().to_list()
    load_all()
    task, units = REGISTRY.get(rows["task"][0]), rows["units"].unique().sort().to_list()
    if task:
        measures = task.measures(units)
    elif values["position"] or values["depth"]:
        measures = "retrieval"
    else:
        measures = "length" if values["length"] > 1 else "other"
    return Profile(
        name=name,
        measures=declared["measures"] if declared.get("measures") in get_args(Measure) else measures,
        unit=str(declared.get("unit") or (task.UNIT if task else "units")),
        units=tuple(number for number in units if number),
        curves=tuple(axis for axis, drawn in curves.items() if drawn),
        grid=grid,
        subtasks=values["subtask"] if values["subtask"] > 1 else 0,
        conditions=tuple(name for name in dict.fromkeys(names) if 1 < names.count(name) <= MOST_SUBTASKS),
        outcomes=tuple(outcomes) if set(outcomes) - {"right", "wrong"} else (),
    )


def unsplit(scores: pl.DataFrame) -> pl.DataFrame:
    """Return the rows over whole evaluations, split along no axis."""
    return scores.filter(pl.all_horizontal(pl.col(axis).is_null() for axis in AXES))


def along(scores: pl.DataFrame, axis: Axis) -> pl.DataFrame:
    """Return the rows that are split by an axis, and otherwise at most by those :attr:`~Axis.beside` it."""
    others = [other for other in AXES if other not in axis.columns]
    return scores.filter(pl.col(axis.name).is_not_null() & pl.all_horizontal(pl.col(o).is_null() for o in others))


@dataclass(frozen=True)
class Profile:
    """What an evaluation measures and how its accuracy can be split.

    Attributes:
        measures: "retrieval" (gold positions, needles), "length" (accuracy by context length), "knowledge" (closed
            book), "ceiling" (the gold document alone), "benchmark" (of lm-evaluation-harness) or "other".
        unit: plural noun for what the prompts hold: "documents"; ``units`` is every number of them, sorted.
        curves: axes with several values; ``grid``: whether several depths at several lengths give a heatmap.
        subtasks: their number, 0 where all examples are of one.
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
        unit = self.unit
        if self.units == (1,):
            unit = f"{unit.removesuffix('ies')}y" if unit.endswith("ies") else unit.removesuffix("s")
        return f"{self.name} ({' to '.join(map(str, dict.fromkeys([self.units[0], self.units[-1]])))} {unit})"

    @property
    def by_subtask(self) -> bool:
        """Whether its subtasks are few enough for a table."""
        return 1 < self.subtasks <= MOST_SUBTASKS

    def splits(self, axis: Axis) -> bool:
        split = {"subtask": self.by_subtask, "condition": bool(self.conditions), "position": False}
        return axis in self.curves or split.get(axis.name, self.grid)
