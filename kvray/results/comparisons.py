"""All comparisons of a report in their families, and the scores beside them, overall and along every axis."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import polars as pl

from kvray.results import profile
from kvray.results.frames import BASE, COMPARED, Sides, accuracy, judge, models
from kvray.results.profile import Kind

OVERALL, PAIRWISE = "against the base", "pairwise"
BY_POSITION, BY_LENGTH, BY_DEPTH = (f"{OVERALL}, by {axis}" for axis in ("position", "length", "length and depth"))
BY_SUBTASK, BY_CONDITION = (f"{OVERALL}, by {axis}" for axis in ("subtask", "condition"))
"""Families of comparisons; Holm's correction runs within each, so that looking closer costs the headline nothing."""
SPLITS: Mapping[str, tuple[str, ...]] = {
    BY_POSITION: ("position",),
    BY_LENGTH: ("length",),
    BY_DEPTH: ("length", "depth"),
    BY_SUBTASK: ("subtask",),
    BY_CONDITION: ("condition",),
}
"""Columns by which a family is split; the others are null in it."""
AXES = ("position", "length", "depth", "subtask", "condition")
"""Columns of which none is set where all rows of an evaluation are taken together."""
_TYPES = {"position": pl.Int32, "length": pl.Int32, "depth": pl.Float32, "subtask": pl.String, "condition": pl.String}


def family(predictions: pl.DataFrame, found: Mapping[str, Kind] | None = None) -> pl.DataFrame:
    """All comparisons of a report: every model against the base, overall and along each axis, and all pairs overall.

    An evaluation is split along an axis of which it has several values; by subtask or condition only where they are few
    enough for a table (:data:`kvray.results.profile.MOST_SUBTASKS`).

    Args:
        predictions: rows with a ``model`` column.
        found: the evaluations' kinds; told from the predictions where None.

    Returns:
        Columns of :func:`kvray.results.frames.judge` with ``family`` and :data:`AXES` in front (null: all together);
        Holm within each family.
    """
    found = profile.kinds(predictions) if found is None else found
    finetuned = models(predictions)
    parts: list[pl.DataFrame] = []

    def add(name: str, tables: list[pl.DataFrame]) -> None:
        if tables:
            table = judge(pl.concat(tables, how="diagonal").sort("evaluation", maintain_order=True))
            absent = [axis for axis in AXES if axis not in table.columns]
            table = table.with_columns(pl.lit(None, dtype=_TYPES[axis]).alias(axis) for axis in absent)
            table = table.with_columns(pl.lit(name).alias("family"))
            first = ["family", "evaluation", *AXES]
            parts.append(table.select(*first, pl.exclude(first)))

    if BASE in predictions["model"]:
        add(OVERALL, _compare(predictions, (), [(BASE, model) for model in finetuned]))
    for name, axes in SPLITS.items():
        rows = _split(predictions, name, found)
        if rows.height and BASE in rows["model"]:
            add(name, _compare(rows, axes, [(BASE, model) for model in models(rows)]))
    add(PAIRWISE, _compare(predictions, (), list(itertools.combinations(finetuned, 2))))
    if parts:
        return pl.concat(parts)
    front = {"family": pl.String, "evaluation": pl.String, **_TYPES}
    return pl.DataFrame(schema=front | COMPARED | {"p_holm": pl.Float64, "verdict": pl.String})


def scores(
    predictions: pl.DataFrame, comparisons: pl.DataFrame, found: Mapping[str, Kind] | None = None
) -> pl.DataFrame:
    """Return the rows of scores.parquet: accuracy beside its difference to the base, overall and along every axis.

    Accuracy is also given by subtasks that are too many to be compared (the subjects of MMLU).
    """
    found = profile.kinds(predictions) if found is None else found
    keys = ["sweep", "evaluation", "task", "base_model", "mixture", "finetune", "model"]
    parts = [accuracy(predictions, keys)]
    for name, axes in SPLITS.items():
        rows = _split(predictions, name, found, all_subtasks=True)
        parts += [accuracy(rows, [*keys, *axes])] if rows.height else []
    empty = pl.DataFrame(schema=_TYPES)
    table = pl.concat([*parts, empty], how="diagonal")
    against = comparisons.filter(pl.col("family") != PAIRWISE).select(
        "evaluation",
        pl.col("b").alias("model"),
        *AXES,
        "difference",
        pl.col("low").alias("difference_low"),
        pl.col("high").alias("difference_high"),
        pl.col("n").alias("pairs"),
        "p",
        "p_holm",
        "verdict",
    )
    joined = table.join(against, on=["evaluation", "model", *AXES], how="left", nulls_equal=True)
    return joined.sort(["evaluation", "mixture", "finetune", *AXES], nulls_last=False, maintain_order=True)


def whole(scores: pl.DataFrame) -> pl.DataFrame:
    """Return the rows that are over all positions, lengths, depths, subtasks and conditions together."""
    return scores.filter(pl.all_horizontal(pl.col(axis).is_null() for axis in AXES))


def along(scores: pl.DataFrame, axis: str) -> pl.DataFrame:
    """Return the rows that are split by one axis alone ("depth": at whatever length)."""
    others = [other for other in AXES if other != axis and not (axis == "depth" and other == "length")]
    return scores.filter(pl.col(axis).is_not_null() & pl.all_horizontal(pl.col(other).is_null() for other in others))


def _compare(rows: pl.DataFrame, axes: Sequence[str], pairs: Sequence[tuple[str, str]]) -> list[pl.DataFrame]:
    """Compare pairs of models, an evaluation at a time: its comparisons resample the same questions, drawn once."""
    each = [Sides(part, axes) for part in rows.partition_by("evaluation", maintain_order=True)]
    return [table for sides in each for a, b in pairs if (table := sides.compare(a, b)).height]


def _split(predictions: pl.DataFrame, name: str, found: Mapping[str, Kind], all_subtasks: bool = False) -> pl.DataFrame:
    """Return the rows of the evaluations that a family splits."""
    wanted = {
        BY_POSITION: [e for e, kind in found.items() if "position" in kind.axes],
        BY_LENGTH: [e for e, kind in found.items() if "length" in kind.axes or kind.grid],
        BY_DEPTH: [e for e, kind in found.items() if "depth" in kind.axes or kind.grid],
        BY_SUBTASK: [e for e, kind in found.items() if kind.by_subtask or (all_subtasks and kind.subtasks)],
        BY_CONDITION: [e for e, kind in found.items() if kind.conditions],
    }[name]
    rows = predictions.filter(pl.col("evaluation").is_in(wanted))
    if name != BY_CONDITION:
        return rows.filter(pl.col(SPLITS[name][-1]).is_not_null())
    names = [f"{e} {condition}" for e in wanted for condition in found[e].conditions]
    asked = pl.col("evaluation") + " " + pl.col("condition").str.extract(r"^([^=]*)")
    return profile.by_condition(rows).filter(asked.is_in(names))
