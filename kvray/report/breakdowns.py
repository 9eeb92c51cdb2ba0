"""Accuracy by position, length, depth, subtask and condition, and the kinds of answers."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import polars as pl

from kvray.report import published
from kvray.report.blocks import Block, Details, Figure, Heading, Table, Text
from kvray.report.charts import curves, grids
from kvray.report.charts.style import Palette
from kvray.report.text import (
    arrows,
    bold,
    by_model,
    change,
    count,
    counts,
    interval,
    marked,
    notes,
    percent,
    seeds_averaged,
)
from kvray.results import outcomes
from kvray.results.frames import BASE, accuracy
from kvray.results.profile import CONDITION, CURVES, DEPTH, LENGTH, POSITION, SUBTASK, Axis, along
from kvray.results.snapshot import Snapshot

_WIDE = 12  # most places on an axis for a table that is not folded away
_CELLS = 400  # most cells of a grid whose numbers are listed


def by_axes(snapshot: Snapshot) -> list[Block]:
    """Accuracy along each axis on which an evaluation has several places: a figure and a table."""
    blocks: list[Block] = []
    for axis in CURVES:
        evaluations = [name for name, each in snapshot.profiles.items() if axis in each.curves]
        blocks += _by_evaluation(f"By {axis.title}", snapshot, evaluations, partial(_along_axis, axis=axis))
    return blocks


def grids_by_depth(snapshot: Snapshot) -> list[Block]:
    """Heatmaps of accuracy and of change by length and depth, with their numbers folded away."""
    evaluations = [name for name, each in snapshot.profiles.items() if each.grid]
    return _by_evaluation("By context length and needle depth", snapshot, evaluations, _grid)


def by_kind(snapshot: Snapshot) -> list[Block]:
    """Tables of accuracy by subtask and by each condition."""
    blocks: list[Block] = []
    for evaluation, each in snapshot.profiles.items():
        tables = []
        if each.by_subtask:
            tables += _split(snapshot, along(snapshot.scores, SUBTASK), evaluation, SUBTASK, "subtask")
        for condition in each.conditions:
            rows = along(snapshot.scores, CONDITION).filter(pl.col("condition").str.starts_with(f"{condition}="))
            tables += _split(snapshot, rows, evaluation, CONDITION, condition)
        blocks += [Heading(each.title, 3), *tables] if tables else []
    return [Heading("By kind of example"), *blocks] if blocks else []


def answers(snapshot: Snapshot) -> list[Block]:
    """How each model's answers divide into kinds; for closed book, also the inventions among the wrong ones."""
    evaluations = [name for name, each in snapshot.profiles.items() if each.outcomes]
    return _by_evaluation("What the answers are", snapshot, evaluations, answers_in)


def answers_in(snapshot: Snapshot, evaluation: str) -> list[Block]:
    """Kinds of answers in one evaluation: a figure and a table, or a sentence where all are of one kind."""
    shares = outcomes.shares(snapshot.predictions, evaluation)
    kinds = shares["outcome"].unique(maintain_order=True).to_list()
    if len(kinds) == 1:
        return [Text(f"Every answer of every model is of one kind: *{kinds[0]}*.")]
    invented: dict[str, dict[str, Any]] = {}
    about = f"{counts(shares['n'].unique().sort().to_list())} answers of each model"
    about += seeds_averaged(snapshot, [evaluation])
    if outcomes.INVENTION in kinds:
        rows = outcomes.inventions(snapshot.predictions, evaluation)
        invented = {row["model"]: row for row in rows.iter_rows(named=True)}
        about += "; at the end: of the wrong answers, how many are inventions, with its 95 % interval"
    ends = {
        model: f"{percent(row['share'], 0)}  ({100 * row['low']:.0f} to {100 * row['high']:.0f})"
        for model, row in invented.items()
        if row["share"] is not None
    }
    chart = grids.outcome_bars(shares, evaluation, about, ends)
    figure = Figure(chart, f"Kinds of answers on {evaluation}, per mixture", "answers", evaluation)
    cells = {(row["model"], row["outcome"]): row["share"] for row in shares.iter_rows(named=True)}
    models = shares["model"].unique(maintain_order=True).to_list()
    table = [[bold(model), *(percent(cells[model, kind]) for kind in kinds)] for model in models]
    if not invented:
        return [figure, Table(["model", *kinds], table), Text("Shares of all answers; seeds averaged.", "sub")]
    for line, row in zip(table, (invented[model] for model in models), strict=True):
        shift = change(row["difference"], row["difference_low"], row["difference_high"])
        line += [count(row["wrong"]), percent(row["share"]), interval(row["low"], row["high"]), shift]
    header = ["model", *kinds, "wrong answers", "of these inventions", "95 % interval", "change, points"]
    return [figure, Table(header, table), Text(notes()["answers"], "sub")]


def reasoning(snapshot: Snapshot) -> list[Block]:
    """How chains of thought go, by length: the share of the key facts that they state, and how many answer first."""
    told = snapshot.predictions.filter(pl.col("coverage").is_not_null())
    evaluations = [name for name in snapshot.profiles if name in told["evaluation"]]
    return _by_evaluation("How the chains of thought go", snapshot, evaluations, _reasoning_in)


def _reasoning_in(snapshot: Snapshot, evaluation: str) -> list[Block]:
    rows = snapshot.of(evaluation).filter(pl.col("coverage").is_not_null())
    lengths = rows["length"].unique().sort().to_list()
    means = rows.group_by("model", "length").agg(pl.col("coverage", "early").mean())
    of = {(model, length): shares for model, length, *shares in means.iter_rows()}
    table = [
        [
            bold(model) if at == 0 else "",
            what,
            *(percent(of.get((model, each), (None, None))[at], 0) for each in lengths),
        ]
        for model in snapshot.with_base
        if any((model, each) in of for each in lengths)
        for at, what in enumerate(("key facts stated", "answered first"))
    ]
    header = ["model", "share", *("all" if each is None else LENGTH.value.format(each) for each in lengths)]
    return [Table(header, table, left=2), Text(notes()["reasoning"], "sub")]


def _by_evaluation(
    title: str, snapshot: Snapshot, evaluations: Sequence[str], part: Callable[[Snapshot, str], list[Block]]
) -> list[Block]:
    blocks: list[Block] = [Heading(title)] if evaluations else []
    for evaluation in evaluations:
        blocks += [Heading(snapshot.profiles[evaluation].title, 3)] if len(evaluations) > 1 else []
        blocks += part(snapshot, evaluation)
    return blocks


def _along_axis(snapshot: Snapshot, evaluation: str, axis: Axis) -> list[Block]:
    levels = bounds(snapshot, evaluation) if axis == POSITION else []
    theirs = published.curves(snapshot, evaluation, axis)
    subtitle = f"{_asked(snapshot, evaluation, axis)}; bands: 95 % intervals of each accuracy"
    subtitle += "; thin lines: the same questions, grey areas: range of the finetunes" if levels else ""
    subtitle += f"; hollow: {published.credit(snapshot, evaluation, axis)}" if theirs else ""
    seeds = _by_seed(snapshot, evaluation, axis)
    subtitle += "; small points: the seeds" if seeds.height else ""
    palette = Palette(snapshot.models)
    chart = curves.accuracy_along(axis, snapshot.scores, evaluation, palette, subtitle, levels, theirs, seeds)
    about = f"Accuracy by {axis.title} on {evaluation}, per mixture"
    figure = Figure(chart, about, f"accuracy-by-{axis.name}", evaluation)
    return [figure, *_table_along(snapshot, evaluation, axis)]


def _by_seed(snapshot: Snapshot, evaluation: str, axis: Axis) -> pl.DataFrame:
    """Return the accuracy of each finetune at each place on an axis, of models with several seeds."""
    scored = pl.col("seed", "score", axis.name).is_not_null()
    rows = snapshot.of(evaluation).filter(pl.all_horizontal(scored))
    several = rows.filter(pl.col("seed").n_unique().over("model") > 1)
    means = several.group_by("model", "seed", axis.name).agg(accuracy=pl.col("score").mean())
    return means.sort("model", "seed", axis.name)


def bounds(snapshot: Snapshot, evaluation: str) -> list[curves.Level]:
    """Return floors (closed book) and ceilings (gold document alone), on the evaluation's own questions."""
    if snapshot.profiles[evaluation].measures != "retrieval":
        return []
    asked = snapshot.of(evaluation).filter(pl.col("position").is_not_null())["question_id"].unique().to_list()
    levels = []
    for name in [name for name, each in snapshot.profiles.items() if each.measures in ("knowledge", "ceiling")]:
        rows = snapshot.of(name).filter(pl.col("question_id").is_in(asked))
        if not rows.height:
            continue
        by_model = dict(accuracy(rows, ["model"]).select("model", "accuracy").iter_rows())
        base = by_model.pop(BASE, None)
        tuned = [each for each in by_model.values() if each is not None]
        ends = (min(tuned), max(tuned)) if tuned else (None, None)
        floor = snapshot.profiles[name].measures == "knowledge"
        levels.append(curves.Level(f"{name} ({'closed book' if floor else 'one document'})", floor, base, *ends))
    return levels


def _asked(snapshot: Snapshot, evaluation: str, *axes: Axis) -> str:
    """Return "mdqa (20 documents), 200 questions at each position"."""
    by = [axis.name for axis in axes]
    rows = snapshot.of(evaluation).filter(pl.all_horizontal(pl.col(name).is_not_null() for name in by))
    per = rows.group_by(by).agg(pl.col("question_id").n_unique())["question_id"].unique().sort().to_list()
    noun = "question" if per == [1] else "questions"
    name = snapshot.profiles[evaluation].title
    subtasks = rows["subtask"].drop_nulls().unique().sort().to_list()
    if len(axes) > 1 and len(subtasks) == 1:
        name = f"{evaluation} ({subtasks[0]})"
    return f"{name}, {counts(per)} {noun} at each {' and '.join(by)}{seeds_averaged(snapshot, [evaluation])}"


def _table_along(snapshot: Snapshot, evaluation: str, axis: Axis) -> list[Block]:
    rows = along(snapshot.scores, axis).filter(pl.col("evaluation") == evaluation)
    places = rows[axis.name].unique().sort().to_list()
    table = _models(snapshot, rows, axis, places)
    header = ["model", *(axis.value.format(place) for place in places)]
    theirs = published.lines(snapshot, evaluation, axis, places)
    if theirs:
        header = ["model", "from", *header[1:]]
        table = [*([line[0], "here", *line[1:]] for line in table), *theirs]
    block = Table(header, table, left=2 if theirs else 1)
    note = Text(f"Accuracy at each {axis.title}. {_arrows(snapshot, table, axis)}".rstrip(), "sub")
    if len(places) > _WIDE:
        return [Details(f"Accuracy at all {len(places)} {axis.name}s", [block, note])]
    return [block, note]


def _grid(snapshot: Snapshot, evaluation: str) -> list[Block]:
    scores, palette, asked = snapshot.scores, Palette(snapshot.models), _asked(snapshot, evaluation, LENGTH, DEPTH)
    by = f"by context length and needle depth on {evaluation}, per mixture"
    chart = grids.heatmaps(scores, evaluation, "accuracy", palette, f"{asked}; numbers: accuracy in %")
    blocks: list[Block] = [Figure(chart, f"Accuracy {by}", "heatmap", evaluation)]
    asked += "; numbers: points; bordered: differs from the base after Holm's correction"
    if (chart := grids.heatmaps(scores, evaluation, "difference", palette, asked)) is not None:
        blocks.append(Figure(chart, f"Change against the base {by}", "heatmap-change", evaluation))
    rows = grids.cells(snapshot.scores, evaluation)
    lengths, depths = (rows[axis.name].unique().sort().to_list() for axis in (LENGTH, DEPTH))
    if len(lengths) * len(depths) > _CELLS:
        note = f"The numbers of all {len(lengths)} \u00d7 {len(depths)} cells are in scores.parquet."
        return [*blocks, Text(note, "sub")]
    tables: list[Block] = []
    for model in [m for m in snapshot.with_base if m in rows["model"]]:
        at = {(r["length"], r["depth"]): r for r in rows.filter(pl.col("model") == model).iter_rows(named=True)}
        header = [f"{model}, depth", *map(LENGTH.value.format, lengths)]
        lines = [[DEPTH.value.format(d), *(marked(at.get((length, d)), 1) for length in lengths)] for d in depths]
        tables.append(Table(header, lines))
    return [*blocks, Details(f"Accuracy in each of {len(lengths)} \u00d7 {len(depths)} cells", tables)]


def _split(snapshot: Snapshot, rows: pl.DataFrame, evaluation: str, axis: Axis, title: str) -> list[Block]:
    rows = rows.filter(pl.col("evaluation") == evaluation)
    values = rows[axis.name].unique().sort().to_list()
    table = _models(snapshot, rows, axis, values)
    note = _arrows(snapshot, table, axis)
    header = ["model", *(value.removeprefix(f"{title}=") for value in values)]
    return [Heading(f"By {title}", 4), Table(header, table), *([Text(note, "sub")] if note else [])]


def _models(snapshot: Snapshot, rows: pl.DataFrame, axis: Axis, values: list[Any]) -> list[list[str]]:
    digits = 1 if axis == SUBTASK else 0
    cells = by_model(snapshot, rows, axis.name, values, lambda row: marked(row, digits))
    return [[bold(model), *line] for model, line in cells.items()]


def _arrows(snapshot: Snapshot, table: Sequence[Sequence[str]], axis: Axis) -> str:
    comparisons = snapshot.comparisons.filter((pl.col("family") == axis.family) & pl.col("p").is_not_null())
    return arrows(table, comparisons, axis.family.partition(", ")[2])
