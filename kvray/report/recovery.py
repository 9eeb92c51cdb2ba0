"""How much of the gap between closed book and oracle each model recovers from its context."""

import polars as pl

from kvray.report.blocks import Block, Figure, Heading, Table, Text
from kvray.report.charts import recoveries
from kvray.report.charts.style import Palette
from kvray.report.text import DASH, bold, counts, interval, notes, percent, seeds_averaged
from kvray.results.profile import LENGTH, POSITION, Axis
from kvray.results.recovery import recovery
from kvray.results.snapshot import Snapshot

_WIDE = 12  # most places on an axis whose ratios stand in the table


def recovered(snapshot: Snapshot) -> list[Block]:
    """Return a table and a figure for each retrieval that is asked closed book and with the gold document alone too."""
    whole = recovery(snapshot.predictions, (), snapshot.profiles)
    blocks: list[Block] = []
    for evaluation in whole["evaluation"].unique(maintain_order=True):
        blocks += _evaluation(snapshot, str(evaluation), whole.filter(pl.col("evaluation") == evaluation))
    return [Heading("What is recovered from the context"), *blocks, Text(notes()["recovery"], "sub")] if blocks else []


def _evaluation(snapshot: Snapshot, evaluation: str, whole: pl.DataFrame) -> list[Block]:
    known = snapshot.profiles[evaluation]
    axis = next((each for each in (POSITION, LENGTH) if each in known.curves), None)
    split, places = whole.clear(), []
    if axis is not None:
        three = [evaluation, *whole.select("knowledge", "ceiling").row(0)]
        rows = snapshot.predictions.filter(pl.col("evaluation").is_in(three))
        split = recovery(rows, [axis.name], {name: snapshot.profiles[name] for name in three})
        places = split[axis.name].unique().sort().to_list()
    blocks: list[Block] = [Heading(known.title, 3)]
    asked = f"{counts(whole['questions'].unique().sort().to_list())} questions, between {whole['knowledge'][0]} and "
    asked += f"{whole['ceiling'][0]}{seeds_averaged(snapshot, [evaluation])}"
    if axis is not None and len(places) > 1 and split["recovery"].count():
        chart = recoveries.along(axis, split, evaluation, Palette(snapshot.models), f"{asked}; bands: 95 % intervals")
        about = f"Share of the gap recovered by {axis.title} on {evaluation}, per mixture"
        blocks.append(Figure(chart, about, f"recovered-by-{axis.name}", evaluation))
    header = ["model", "closed book", "with context", "oracle", "recovered", "95 % interval"]
    shown = places if axis is not None and len(places) <= _WIDE else []
    header += [axis.value.format(place) for place in shown] if axis is not None else []
    lines = []
    for row in whole.iter_rows(named=True):
        line = [bold(row["model"]), *(percent(row[name]) for name in ("closed_book", "accuracy", "oracle"))]
        line += ["undefined" if row["recovery"] is None else percent(row["recovery"], 0)]
        line += [interval(row["low"], row["high"])]
        lines.append(line + [_at(split, axis, row["model"], place) for place in shown if axis is not None])
    return [*blocks, Table(header, lines)]


def _at(split: pl.DataFrame, axis: Axis, model: str, place: float) -> str:
    """Return a model's ratio at a place, a dash where it is undefined or was not asked."""
    found = split.filter((pl.col("model") == model) & (pl.col(axis.name) == place))["recovery"]
    return percent(found[0], 0) if found.len() and found[0] is not None else DASH
