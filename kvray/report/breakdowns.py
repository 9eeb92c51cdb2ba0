"""The report's closer looks: by position, length, depth, subtask and condition, and the kinds of answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import polars as pl

from kvray.report import published
from kvray.report import text as words
from kvray.report.blocks import Block, Details, Heading, Table, Text
from kvray.report.charts.curves import NAMED
from kvray.results import outcomes
from kvray.results.comparisons import BY_CONDITION, BY_DEPTH, BY_LENGTH, BY_POSITION, BY_SUBTASK, along
from kvray.results.frames import BASE
from kvray.results.profile import Axis
from kvray.results.snapshot import Found

ARROWS = {"better": " \u25b2", "worse": " \u25bc"}
"""Behind a number that differs from the base's after Holm's correction."""
_WIDE = 12
_CELLS = 400
_FAMILIES: dict[Axis, str] = {"position": BY_POSITION, "length": BY_LENGTH, "depth": BY_DEPTH}


def by_axis(found: Found, evaluation: str, axis: Axis) -> list[Block]:
    """Accuracy along an axis, a row per model, published rows under them; arrows mark what differs from the base."""
    rows = along(found.scores, axis).filter(pl.col("evaluation") == evaluation)
    places = rows[axis].unique().sort().to_list()
    said = {"position": "position {}", "length": "{:,} tokens", "depth": "{:g} %"}[axis]
    table = _models(found, rows, axis, places)
    header = ["model", *(said.format(place) for place in places)]
    others = published.lines(found, evaluation, axis, places)
    if others:
        header = ["model", "from", *header[1:]]
        table = [*([line[0], "here", *line[1:]] for line in table), *others]
    made = Table(header, table, left=2 if others else 1)
    note = f"Accuracy at each {NAMED[axis][0]}. {_told(found, table, _FAMILIES[axis])}".rstrip()
    if len(places) > _WIDE:
        return [Details(f"Accuracy at all {len(places)} {axis}s", [made, Text(note, "sub")])]
    return [made, Text(note, "sub")]


def grid(found: Found, evaluation: str) -> list[Block]:
    """The numbers behind the heatmaps, folded away; in scores.parquet alone where they are too many."""
    rows = found.scores.filter(
        (pl.col("evaluation") == evaluation) & pl.col("length").is_not_null() & pl.col("depth").is_not_null()
    )
    lengths, depths = (rows[axis].unique().sort().to_list() for axis in ("length", "depth"))
    if len(lengths) * len(depths) > _CELLS:
        return [Text(f"The numbers of all {len(lengths)} \u00d7 {len(depths)} cells are in scores.parquet.", "sub")]
    blocks: list[Block] = []
    for model in [m for m in [BASE, *found.models] if m in rows["model"]]:
        cells = {(r["length"], r["depth"]): r for r in rows.filter(pl.col("model") == model).iter_rows(named=True)}
        table = [[f"{depth:g} %", *(_cell(cells.get((length, depth)), 1) for length in lengths)] for depth in depths]
        header = [f"{model}, depth", *(f"{length:,} tokens" for length in lengths)]
        blocks.append(Table(header, table))
    return [Details(f"Accuracy in each of {len(lengths)} \u00d7 {len(depths)} cells", blocks)]


def by_subtask(found: Found, evaluation: str) -> list[Block]:
    """Accuracy by subtask, a row per model."""
    rows = along(found.scores, "subtask").filter(pl.col("evaluation") == evaluation)
    return _split(found, rows, "subtask", BY_SUBTASK, "subtask", str)


def by_condition(found: Found, evaluation: str) -> list[Block]:
    """Accuracy by each condition, a table per condition with a row per model."""
    blocks: list[Block] = []
    for condition in found.kinds[evaluation].conditions:
        asked = (pl.col("evaluation") == evaluation) & pl.col("condition").str.starts_with(f"{condition}=")
        rows = along(found.scores, "condition").filter(asked)
        blocks += _split(found, rows, "condition", BY_CONDITION, condition, lambda value: value.partition("=")[2])
    return blocks


def answers(found: Found, evaluation: str) -> list[Block]:
    """How each model's answers divide into kinds; for closed book, how many of the wrong ones are inventions."""
    shares = outcomes.shares(found.predictions, evaluation)
    kinds = shares["outcome"].unique(maintain_order=True).to_list()
    cells = {(row["model"], row["outcome"]): row for row in shares.iter_rows(named=True)}
    models = shares["model"].unique(maintain_order=True).to_list()
    table = [[_bold(m), *(words.percent(cells[m, kind]["share"]) for kind in kinds)] for m in models]
    header = ["model", *kinds]
    if len(kinds) == 1:
        return [Text(f"Every answer of every model is of one kind: *{kinds[0]}*.")]
    if outcomes.INVENTION not in kinds:
        return [Table(header, table), Text("Shares of all answers; seeds averaged.", "sub")]
    invented = {row["model"]: row for row in outcomes.inventions(found.predictions, evaluation).iter_rows(named=True)}
    for line, model in zip(table, models, strict=True):
        row = invented[model]
        change = {"difference": row["difference"], "low": row["difference_low"], "high": row["difference_high"]}
        line += [
            words.count(row["wrong"]),
            words.percent(row["share"]),
            words.interval(row["low"], row["high"]),
            words.change(change),
        ]
    header += ["wrong answers", "of these inventions", "95 % interval", "change, points"]
    note = (
        "*Invention*: a wrong answer given as if it were known; *refusal*: the model says that it does not know. The "
        "change compares the shares of two models on the same questions; it says how a model errs where it errs, and a "
        "model that knows more has fewer wrong answers to err in. It is not corrected for the number of comparisons."
    )
    return [Table(header, table), Text(note, "sub")]


def arrows(table: Sequence[Sequence[str]], comparisons: int, which: str) -> str:
    """Say what the arrows of a table mean, or that it has none; nothing where nothing was compared."""
    if not comparisons:
        return ""
    after = f"after Holm's correction over all {comparisons:,} comparisons {which}."
    if any(mark.strip() in cell for line in table for cell in line for mark in ARROWS.values()):
        return f"\u25b2 and \u25bc: differs from the base {after}"
    return f"No number here differs from the base {after}"


def _told(found: Found, table: Sequence[Sequence[str]], family: str) -> str:
    comparisons = found.comparisons.filter((pl.col("family") == family) & pl.col("p").is_not_null()).height
    return arrows(table, comparisons, family.partition(", ")[2])


def _split(
    found: Found, rows: pl.DataFrame, column: str, family: str, title: str, said: Callable[[str], str]
) -> list[Block]:
    values = rows[column].unique().sort().to_list()
    table = _models(found, rows, column, values)
    note = _told(found, table, family)
    blocks: list[Block] = [Heading(f"By {title}", 4), Table(["model", *map(said, values)], table)]
    return [*blocks, Text(note, "sub")] if note else blocks


def _models(found: Found, rows: pl.DataFrame, column: str, values: list[Any]) -> list[list[str]]:
    cells = {(row["model"], row[column]): row for row in rows.iter_rows(named=True)}
    table = []
    for model in [BASE, *found.models]:
        line = [cells.get((model, value)) for value in values]
        if any(line):
            table.append([_bold(model), *(_cell(cell, 0 if column != "subtask" else 1) for cell in line)])
    return table


def _cell(row: dict[str, Any] | None, digits: int) -> str:
    return "\u2013" if row is None else words.percent(row["accuracy"], digits) + ARROWS.get(row["verdict"] or "", "")


def _bold(model: str) -> str:
    return f"**{model}**" if model != BASE else BASE
