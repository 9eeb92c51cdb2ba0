"""Published numbers (``reference.csv``) to set beside a sweep's own.

The certainty of a row: *primary* was read in the work, its code or its data card, *secondary* in notes or reviews that
quote it; *derived* is our arithmetic on such numbers. What nobody has read is not in the file.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

import polars as pl

from kvray.results.frames import BASE
from kvray.results.profile import AXES
from kvray.store.schemas import REFERENCE_SCHEMA
from kvray.tasks import load_all
from kvray.tasks.base import REGISTRY

PLACES = tuple(name for name in AXES if name in REFERENCE_SCHEMA.names)
"""Axes along which numbers may be published."""
CELL = ("set", "work", "base_model", "mixture", "evaluation", *PLACES, "metric")
"""Columns that identify a number."""


@cache
def read() -> pl.DataFrame:
    """Return all published numbers, in the columns of :data:`REFERENCE_SCHEMA`."""
    file = resources.files("kvray.results") / "reference.csv"
    types = pl.DataFrame(REFERENCE_SCHEMA.empty_table()).schema
    rows = pl.read_csv(file.read_bytes(), schema=types, raise_if_empty=True)
    return rows.with_columns(pl.col("note").fill_null(""))


def of_sweep(document: Mapping[str, Any]) -> tuple[pl.DataFrame, list[str]]:
    """Return the published numbers of the sets that a sweep's plan document names, and the names that are no set.

    Added is ``same_base`` (bool: on the sweep's base model); an evaluation with such numbers loses those of others.
    """
    wanted = (document.get("sweep") or {}).get("reference") or []
    rows = read()
    known = set(rows["set"].to_list())
    own = model_name(str(document.get("base_model") or ""))
    same = pl.col("base_model").map_elements(lambda name: model_name(name) == own, return_dtype=pl.Boolean)
    parts = [rows.filter(pl.col("set") == name) for name in wanted if name in known]
    chosen = (pl.concat(parts) if parts else rows.clear()).with_columns(same.alias("same_base"))
    chosen = chosen.filter(pl.col("same_base") | ~pl.col("same_base").any().over("set", "evaluation"))
    return chosen, [name for name in wanted if name not in known]


def sets() -> list[str]:
    """Return the names of all sets, in the order of the file."""
    return read()["set"].unique(maintain_order=True).to_list()


def changes(rows: pl.DataFrame) -> pl.DataFrame:
    """Return one row per published cell with its ``accuracy`` (percent) and ``change`` (points).

    A change that was not printed is the accuracy minus the base's in the same work, base model and cell.
    """
    cell = [name for name in CELL if name != "metric"]
    where = [name for name in cell if name != "mixture"]
    once = [name for name in rows.columns if name not in (*cell, "metric", "value", "certainty")]
    value, metric = pl.col("value"), pl.col("metric")
    wide = rows.group_by(*cell, maintain_order=True).agg(
        pl.col(once).first(),
        pl.col("certainty").unique(maintain_order=True).str.join(", "),
        accuracy=value.filter(metric == "accuracy").first(),
        printed=value.filter(metric == "change").first(),
    )  # fmt: skip
    base = wide.filter(pl.col("mixture") == BASE).select(*where, of_base="accuracy")
    joined = wide.join(base, on=where, how="left", nulls_equal=True)
    difference = pl.when(pl.col("mixture") != BASE).then(pl.col("accuracy") - pl.col("of_base"))
    return joined.with_columns(change=pl.coalesce("printed", difference)).drop("printed", "of_base")


def beside(rows: pl.DataFrame, predictions: pl.DataFrame, models: Sequence[str]) -> pl.DataFrame:
    """Return the :func:`changes` of published numbers once for each of ``models``, and the base, of their mixture.

    The column ``model`` names it as the predictions do. Left out are mixtures that the sweep lacks, and of tasks whose
    published numbers are means of subtasks (:attr:`~kvray.tasks.base.Task.MEAN_OF`) those of other base models, and
    those at a place where the model was not asked all of them, or was asked under a condition (texts of another kind).
    """
    known = predictions.select("model", pl.col("mixture").fill_null(BASE)).unique()
    of_base = pl.col("model") == BASE
    known = known.filter(of_base | ((pl.col("mixture") != BASE) & pl.col("model").is_in(models)))
    place = {model: at for at, model in enumerate([BASE, *models])}
    known = known.sort(pl.col("model").replace_strict(place, return_dtype=pl.Int64))
    joined = changes(rows).join(known, on="mixture", maintain_order="left_right")
    load_all()
    named = predictions.select("evaluation", "task").unique().iter_rows()
    means = {evaluation: REGISTRY[task].MEAN_OF for evaluation, task in named if task in REGISTRY}
    kept = [_asked_alike(row, means.get(row["evaluation"]), predictions) for row in joined.iter_rows(named=True)]
    return joined.filter(pl.Series(kept, dtype=pl.Boolean))


def _asked_alike(row: Mapping[str, Any], mean_of: frozenset[str] | None, predictions: pl.DataFrame) -> bool:
    """Tell whether a model was asked all that is behind a published number: of one subtask, or the mean of several."""
    if not mean_of:
        return True
    at = [pl.col(place) == row[place] for place in ("position", "length") if row[place] is not None]
    asked = predictions.filter(
        *at,
        pl.col("evaluation") == row["evaluation"],
        pl.col("model") == row["model"],
        pl.col("score").is_not_null(),
        pl.col("condition").is_null(),
    )
    wanted = {row["subtask"]} if row["subtask"] is not None else mean_of
    return bool(row["same_base"]) and wanted <= set(asked["subtask"])


def model_name(name: str) -> str:
    """Return a model's name for comparison: its last part, in lower case, without ``openai:``."""
    return name.removeprefix("openai:").rstrip("/").rpartition("/")[2].lower()
