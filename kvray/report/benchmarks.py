"""General benchmarks as one table, a row per model and a column per benchmark, published rows under ours."""

from __future__ import annotations

from typing import Any

import polars as pl

from kvray.report import breakdowns, findings, published
from kvray.report import text as words
from kvray.report.blocks import Block, Details, Figure, Heading, Table, Text
from kvray.results.comparisons import OVERALL, whole
from kvray.results.frames import BASE
from kvray.results.snapshot import Found


def section(found: Found, figure: Figure | None) -> list[Block]:
    """The table (rows: models; columns: benchmarks), the figure of changes, and intervals and p folded away."""
    evaluations = found.measuring("benchmark")
    if not evaluations:
        return []
    rows = whole(found.scores).filter(pl.col("evaluation").is_in(evaluations))
    cells = {(row["model"], row["evaluation"]): row for row in rows.iter_rows(named=True)}
    theirs = {model: published.benchmark_lines(found, model, evaluations) for model in [BASE, *found.models]}
    table = []
    for model in [BASE, *found.models]:
        line = [cells.get((model, evaluation)) for evaluation in evaluations]
        if any(line):
            table.append([f"**{model}**" if model != BASE else BASE, "here", *map(_cell, line)])
            table += theirs[model]
    header, left = ["model", "from", *evaluations], 2
    if not any(theirs.values()):
        header, table, left = [header[0], *header[2:]], [[line[0], *line[2:]] for line in table], 1
    pairs = found.comparisons.filter((pl.col("family") == OVERALL) & pl.col("p").is_not_null()).height
    note = "Accuracy in %, in brackets the change against the base in points. "
    note = (note + breakdowns.arrows(table, pairs, "against the base")).rstrip()
    note += " Rows in italics: what a work prints; *?*: not confirmed." if any(theirs.values()) else ""
    blocks: list[Block] = [Heading("General benchmarks"), Table(header, table, left=left), Text(note, "sub")]
    blocks += [figure] if figure else []
    each = [block for evaluation in evaluations for block in findings.evaluation_table(found, evaluation)]
    return [*blocks, Details("Intervals and p on each benchmark", each)]


def _cell(row: dict[str, Any] | None) -> str:
    if row is None or row["accuracy"] is None:
        return "\u2013"
    said = f"{100 * row['accuracy']:.1f}"
    if row["difference"] is not None:
        said += f" ({words.signed(row['difference'])})"
    return said + breakdowns.ARROWS.get(row["verdict"] or "", "")
