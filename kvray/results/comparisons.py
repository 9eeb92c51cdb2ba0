"""All comparisons of a report, family by family, and its scores: overall and along every axis."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from kvray.results import profile
from kvray.results.frames import BASE, COMPARED, Pairs, accuracy, judge, models
from kvray.results.profile import AXES, CONDITION, OVERALL, PAIRWISE, SUBTASK, TYPES, Axis, Profile


def compare_all(predictions: pl.DataFrame, profiles: Mapping[str, Profile] | None = None) -> pl.DataFrame:
    """Compare every model with the base, overall and along each axis of an evaluation's profile, and all pairs overall.

    Holm's correction runs within each family, so that splits by an axis cost the overall ones nothing. Columns: family,
    evaluation, the axes (null: all values together), and those of :func:`kvray.results.frames.judge`.
    """
    profiles = profile.profiles(predictions) if profiles is None else profiles
    tables = {
        family: _compare(rows, by, [(BASE, model) for model in models(rows)] if BASE in rows["model"] else [])
        for family, (rows, by) in _families(predictions, profiles).items()
    }
    tables[PAIRWISE] = _compare(predictions, (), list(itertools.combinations(models(predictions), 2)))
    return _judged(tables)


def compare_pairs(
    predictions: pl.DataFrame, pairs: Sequence[tuple[str, str]], profiles: Mapping[str, Profile] | None = None
) -> pl.DataFrame:
    """Compare given pairs (a, b) of models, overall and along each axis, in the families of :func:`compare_all`.

    A pair that an evaluation, or a place on an axis, has no row of is left out there. Columns: as of that function.
    """
    profiles = profile.profiles(predictions) if profiles is None else profiles
    families = _families(predictions, profiles)
    return _judged({family: _compare(rows, by, pairs) for family, (rows, by) in families.items()})


def scores(
    predictions: pl.DataFrame, comparisons: pl.DataFrame, profiles: Mapping[str, Profile] | None = None
) -> pl.DataFrame:
    """Return the rows of scores.parquet: accuracy, and change from the base unless subtasks are too many (MMLU's)."""
    profiles = profile.profiles(predictions) if profiles is None else profiles
    keys = ["sweep", "evaluation", "task", "base_model", "mixture", "finetune", "model"]
    parts = [accuracy(predictions, keys).join(_spread(predictions, keys), on=keys, how="left", nulls_equal=True)]
    for axis in AXES.values():
        rows = _split(predictions, axis, profiles, all_subtasks=True)
        parts += [accuracy(rows, [*keys, *axis.columns])] if rows.height else []
    names = {"b": "model", "low": "difference_low", "high": "difference_high", "n": "pairs"}
    against = comparisons.filter(pl.col("family") != PAIRWISE).rename(names)
    numbers = ["difference", "difference_low", "difference_high", "pairs", "test", "p", "p_holm", "verdict", "about"]
    against = against.select("evaluation", "model", *AXES, *numbers)
    table = pl.concat([*parts, pl.DataFrame(schema=TYPES)], how="diagonal")
    joined = table.join(against, on=["evaluation", "model", *AXES], how="left", nulls_equal=True)
    return joined.sort(["evaluation", "mixture", "finetune", *AXES], nulls_last=False, maintain_order=True)


def _families(
    predictions: pl.DataFrame, profiles: Mapping[str, Profile]
) -> dict[str, tuple[pl.DataFrame, tuple[str, ...]]]:
    """Return the rows of each family, and the axes that it is split by."""
    families: dict[str, tuple[pl.DataFrame, tuple[str, ...]]] = {OVERALL: (predictions, ())}
    return families | {axis.family: (_split(predictions, axis, profiles), axis.columns) for axis in AXES.values()}


def _judged(tables: Mapping[str, Sequence[pl.DataFrame]]) -> pl.DataFrame:
    """Return the comparisons of all families, each judged by itself."""
    columns: dict[str, Any] = {"family": pl.String, "evaluation": pl.String, **TYPES, **COMPARED}
    parts = [pl.DataFrame(schema=columns | {"p_holm": pl.Float64, "verdict": pl.String, "about": pl.String})]
    for family, compared in tables.items():
        if compared:
            judged = judge(pl.concat(compared).sort("evaluation", maintain_order=True))
            parts.append(judged.with_columns(pl.lit(family).alias("family")))
    return pl.concat(parts, how="diagonal")


def _spread(predictions: pl.DataFrame, keys: Sequence[str]) -> pl.DataFrame:
    """Return the standard deviation between the accuracies of several seeds, in the column ``spread``."""
    scored = predictions.filter(pl.col("seed").is_not_null() & pl.col("score").is_not_null())
    by_seed = scored.group_by(*keys, "seed", maintain_order=True).agg(pl.col("score").mean())
    return by_seed.group_by(keys, maintain_order=True).agg(spread=pl.col("score").std())


def _compare(rows: pl.DataFrame, columns: Sequence[str], pairs: Sequence[tuple[str, str]]) -> list[pl.DataFrame]:
    # One evaluation at a time: its comparisons share the resampled questions.
    parts = [Pairs(part, columns) for part in rows.partition_by("evaluation", maintain_order=True)]
    return [table for part in parts for a, b in pairs if (table := part.compare(a, b)).height]


def _split(
    predictions: pl.DataFrame, axis: Axis, profiles: Mapping[str, Profile], all_subtasks: bool = False
) -> pl.DataFrame:
    """Return the rows with a value on an axis, of the evaluations that are split along it."""
    many = all_subtasks and axis == SUBTASK
    split = [name for name, each in profiles.items() if each.splits(axis) or (many and each.subtasks)]
    rows = predictions.filter(pl.col("evaluation").is_in(split))
    if axis != CONDITION:
        return rows.filter(pl.col(axis.name).is_not_null())
    wanted = [f"{name} {condition}" for name in split for condition in profiles[name].conditions]
    condition = pl.col("evaluation") + " " + pl.col("condition").str.extract(r"^([^=]*)")
    return profile.by_condition(rows).filter(condition.is_in(wanted))
