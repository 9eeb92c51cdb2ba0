"""Published numbers beside ours: ``reference.csv``, read and checked, and matched with a sweep's evaluations.

A row says who measured what on which model, and how sure we are that the work says so: *primary* was read in the work,
its code or its data card, *secondary* in notes or reviews that quote it; *derived* is arithmetic of ours on such
numbers, and *recalled* is a hypothesis. Nothing here is a measurement of kvray's.
"""

import csv
import math
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources

import polars as pl
import pyarrow as pa

from kvray.errors import InputError
from kvray.results.axes import AXES
from kvray.results.frames import BASE
from kvray.store.schemas import column

REFERENCE_SCHEMA = pa.schema(
    [
        column("set", pa.string(), "set that a sweep names under reference:"),
        column("work", pa.string(), "who published it"),
        column("base_model", pa.string(), "the model that was asked, or finetuned"),
        column("mixture", pa.string(), "finetuning data, as sweeps name it; 'base' for the model as it came"),
        column("evaluation", pa.string(), "evaluation, as sweeps name it"),
        column("subtask", pa.string(), "kind of example; null for all together", nullable=True),
        column("position", pa.int32(), "1-based gold position; null for all together", nullable=True),
        column("length", pa.int32(), "nominal context length in tokens; null for all together", nullable=True),
        column("metric", pa.string(), "accuracy or f1 in percent, or change: accuracy minus the base's, in points"),
        column("value", pa.float64(), "the number, in percent or points"),
        column("n", pa.int64(), "questions behind it; null where unknown", nullable=True),
        column("source", pa.string(), "table, figure or place in the work"),
        column("certainty", pa.string(), "primary | secondary | derived | recalled"),
        column("note", pa.string(), "what to know before comparing; empty if nothing"),
    ]
)
"""Columns of reference.csv, in this order; an empty cell is null."""
METRICS = ("accuracy", "change", "f1")
CERTAINTIES = ("primary", "secondary", "derived", "recalled")
_FILE = "reference.csv"
PLACES = tuple(name for name in AXES if name in REFERENCE_SCHEMA.names)
"""The axes on which a number may have a place."""
_CELL = ("set", "work", "base_model", "mixture", "evaluation", *PLACES, "metric")


@cache
def read() -> pl.DataFrame:
    """Return all published numbers, columns of :data:`REFERENCE_SCHEMA`.

    Raises:
        InputError: the file breaks its schema; every line that does is named.
    """
    return parse(resources.files("kvray.results").joinpath(_FILE).read_text(encoding="utf-8"))


def parse(text: str) -> pl.DataFrame:
    """Read and check the text of a reference file.

    Raises:
        InputError: as :func:`read`.
    """
    lines = list(csv.reader(text.splitlines()))
    if not lines or lines[0] != REFERENCE_SCHEMA.names:
        raise InputError(f"{_FILE}:1: found {', '.join(lines[0]) if lines else 'nothing'}; expected the columns "
                         f"{', '.join(REFERENCE_SCHEMA.names)}")  # fmt: skip
    problems: list[str] = []
    rows: list[dict[str, object]] = []
    seen: dict[tuple[object, ...], int] = {}
    for number, cells in enumerate(lines[1:], start=2):
        row, wrong = _row(cells)
        if not wrong and (first := seen.setdefault(tuple(row[name] for name in _CELL), number)) != number:
            wrong.append(f"found the same cell as line {first}; expected each once in a set")
        problems += [f"{_FILE}:{number}: {problem}" for problem in wrong]
        rows.append(row)
    if problems:
        raise InputError(problems)
    frame = pl.from_arrow(pa.Table.from_pylist(rows, schema=REFERENCE_SCHEMA))
    assert isinstance(frame, pl.DataFrame)
    return frame


def of_sweep(document: Mapping[str, object]) -> tuple[pl.DataFrame, list[str]]:
    """Return the published numbers of the sets that a sweep names, and those of its names that are no set.

    Where a set has numbers of the sweep's own base model for an evaluation, those of other models are left out of it.

    Returns:
        Columns of :data:`REFERENCE_SCHEMA` and ``same_base`` (bool: measured on the sweep's base model), in the order
        of the sets; unknown names.
    """
    sweep = document.get("sweep")
    named = sweep.get("reference") if isinstance(sweep, Mapping) else None
    wanted = [str(name) for name in named] if isinstance(named, list | tuple) else []
    rows = read()
    known = set(rows["set"].to_list())
    own = model_name(str(document.get("base_model") or ""))
    same = pl.col("base_model").map_elements(lambda name: model_name(name) == own, return_dtype=pl.Boolean)
    parts = [rows.filter(pl.col("set") == name) for name in wanted if name in known]
    chosen = (pl.concat(parts) if parts else rows.clear()).with_columns(same.alias("same_base"))
    chosen = chosen.filter(pl.col("same_base") | ~pl.col("same_base").any().over("set", "evaluation"))
    return chosen, [name for name in wanted if name not in known]


def sets() -> list[str]:
    """Return the names of all sets."""
    return read()["set"].unique(maintain_order=True).to_list()


def changes(rows: pl.DataFrame) -> pl.DataFrame:
    """Return one row per published cell with ``accuracy`` and ``change`` side by side, in percent and points.

    A change that was not printed is the accuracy minus the base's of the same work, model and cell.
    """
    cell = [name for name in _CELL if name != "metric"]
    keep = [name for name in rows.columns if name not in (*cell, "metric", "value", "source", "note", "n")]
    where = [name for name in cell if name != "mixture"]
    wide = rows.filter(pl.col("metric") != "f1").group_by(*cell, maintain_order=True).agg(
        *(pl.col(name).first() for name in keep if name != "certainty"),
        pl.col("value").filter(pl.col("metric") == "accuracy").first().alias("accuracy"),
        pl.col("value").filter(pl.col("metric") == "change").first().alias("printed"),
        pl.col("certainty").unique(maintain_order=True).str.join(", "),
        pl.col("source").first(),
        pl.col("note").first(),
        pl.col("n").first(),
    )  # fmt: skip
    base = wide.filter(pl.col("mixture") == BASE).select(*where, pl.col("accuracy").alias("of_base"))
    joined = wide.join(base, on=where, how="left", nulls_equal=True)
    difference = pl.when(pl.col("mixture") != BASE).then(pl.col("accuracy") - pl.col("of_base"))
    return joined.with_columns(pl.coalesce("printed", difference).alias("change")).drop("printed", "of_base")


def model_name(name: str) -> str:
    """Return what tells a model from others: the last part of its name, in lower case, without ``openai:``."""
    return name.removeprefix("openai:").rstrip("/").rpartition("/")[2].lower()


def _row(cells: Sequence[str]) -> tuple[dict[str, object], list[str]]:
    if len(cells) != len(REFERENCE_SCHEMA.names):
        return {}, [f"found {len(cells)} cells; expected {len(REFERENCE_SCHEMA.names)}"]
    row: dict[str, object] = {}
    wrong = []
    for field, cell in zip(REFERENCE_SCHEMA, cells, strict=True):
        if cell == "" and field.name != "note":
            row[field.name] = None
            if not field.nullable:
                wrong.append(f"{field.name}: found nothing; expected {field.metadata[b'description'].decode()}")
        elif pa.types.is_string(field.type):
            row[field.name] = cell
        else:
            try:
                row[field.name] = float(cell) if pa.types.is_floating(field.type) else int(cell)
            except ValueError:
                row[field.name] = None
                wrong.append(f"{field.name}: found {cell!r}; expected a number")
    for name, known in (("metric", METRICS), ("certainty", CERTAINTIES)):
        if row[name] is not None and row[name] not in known:
            wrong.append(f"{name}: found {row[name]!r}; expected {', '.join(known)}")
    value, low = row["value"], -100.0 if row["metric"] == "change" else 0.0
    if isinstance(value, float) and not (math.isfinite(value) and low <= value <= 100.0):
        wrong.append(f"value: found {value:g}; expected {low:g} to 100")
    return row, wrong
