"""Changes in closed-book knowledge and on general benchmarks, with published ones."""

from typing import Any

import polars as pl

from kvray.report import published
from kvray.report.blocks import Block, Details, Figure, Heading, Table, Text
from kvray.report.charts import differences
from kvray.report.charts.style import Palette
from kvray.report.findings import evaluation_table, seeds_averaged
from kvray.report.text import ARROWS, DASH, arrows, bold, signed
from kvray.results.axes import unsplit
from kvray.results.frames import BASE
from kvray.results.snapshot import Snapshot
from kvray.tasks.base import Measure


def knowledge(snapshot: Snapshot) -> list[Block]:
    """The figure of changes in closed-book accuracy."""
    evaluations = _compared(snapshot, "knowledge")
    if not evaluations:
        return []
    rows = snapshot.predictions.filter(pl.col("evaluation").is_in(evaluations))
    questions = f"{rows['question_id'].n_unique():,} closed-book questions{seeds_averaged(snapshot, evaluations)}"
    subtitle = f"{questions}; bars: 95 % intervals of the paired difference; verdicts after Holm's correction"
    chart = differences.knowledge_change(snapshot.against_base(), evaluations, Palette(snapshot.models), subtitle)
    return [
        Heading("What it cost in knowledge"),
        Figure(chart, "Change in closed-book accuracy against the base, per mixture", "knowledge-change"),
        Text("Closed-book questions: no document is given, so the model answers from its weights.", "sub"),
    ]


def benchmarks(snapshot: Snapshot) -> list[Block]:
    """General benchmarks: a table with published rows under ours, the figure of changes, and intervals folded away."""
    evaluations = snapshot.measuring("benchmark")
    if not evaluations:
        return []
    rows = unsplit(snapshot.scores).filter(pl.col("evaluation").is_in(evaluations))
    cells = {(row["model"], row["evaluation"]): row for row in rows.iter_rows(named=True)}
    theirs = {model: published.benchmark_lines(snapshot, model, evaluations) for model in [BASE, *snapshot.models]}
    table = []
    for model, lines in theirs.items():
        line = [cells.get((model, evaluation)) for evaluation in evaluations]
        if any(line):
            table += [[bold(model), "here", *map(_cell, line)], *lines]
    header, left = ["model", "from", *evaluations], 2
    if not any(theirs.values()):
        header, table, left = [header[0], *header[2:]], [[line[0], *line[2:]] for line in table], 1
    pairs = snapshot.against_base().height
    note = "Accuracy in %, in brackets the change against the base in points. "
    note = (note + arrows(table, pairs, "against the base")).rstrip()
    note += " Rows in italics: what a work prints; *?*: not confirmed." if any(theirs.values()) else ""
    each = [block for evaluation in evaluations for block in evaluation_table(snapshot, evaluation)]
    return [
        Heading("General benchmarks"),
        Table(header, table, left=left),
        Text(note, "sub"),
        *_figure(snapshot),
        Details("Intervals and p on each benchmark", each),
    ]


def _figure(snapshot: Snapshot) -> list[Block]:
    evaluations = _compared(snapshot, "benchmark")
    if not evaluations:
        return []
    theirs = published.changes(snapshot)
    subtitle = f"bars: 95 % intervals of the paired difference{seeds_averaged(snapshot, evaluations)}"
    if any(evaluation in evaluations for evaluation, _ in theirs):
        subtitle += "; hollow: published, without interval"
    palette = Palette(snapshot.models)
    chart = differences.benchmark_changes(snapshot.against_base(), evaluations, palette, subtitle, theirs)
    return [Figure(chart, "Change on general benchmarks against the base, per mixture", "benchmark-change")]


def _compared(snapshot: Snapshot, measure: Measure) -> list[str]:
    compared = snapshot.against_base()["evaluation"]
    return [evaluation for evaluation in snapshot.measuring(measure) if evaluation in compared]


def _cell(row: dict[str, Any] | None) -> str:
    if row is None or row["accuracy"] is None:
        return DASH
    change = f" ({signed(row['difference'])})" if row["difference"] is not None else ""
    return f"{100 * row['accuracy']:.1f}{change}{ARROWS.get(row['verdict'] or '', '')}"
