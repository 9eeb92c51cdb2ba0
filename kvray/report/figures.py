"""Which figures a report has: every one that the predictions allow, with its words."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Sequence
from typing import Any

import polars as pl

from kvray.report import published
from kvray.report import text as words
from kvray.report.blocks import Figure
from kvray.report.charts import bars, curves, differences, heatmaps
from kvray.report.charts import losses as descent
from kvray.report.charts.style import Palette, render
from kvray.results import losses, outcomes, profile
from kvray.results.comparisons import OVERALL
from kvray.results.frames import BASE, accuracy
from kvray.results.profile import Axis
from kvray.results.snapshot import Found

Key = tuple[str, ...]
"""What a figure is: its kind, then the evaluations that it is of. File names are made of it, but never stand for it."""
Drawn = tuple[Figure, bytes]
"""A figure with its SVG, and its PNG."""
_LONGEST = 120
"""Characters of a figure's file name, without its suffix."""
_PAIRS = 6
"""Pairs of (retrieval, knowledge) up to which each has a figure; of more, the first closed-book evaluation's."""


def draw(found: Found) -> dict[Key, Drawn]:
    """Draw every figure that the predictions allow."""
    palette = Palette(found.models)
    drawn: dict[Key, Drawn] = {}

    def add(key: Key, about: str, figure: Any) -> None:
        if figure is not None:
            name = file_name(key, [other.name for other, _ in drawn.values()])
            svg = render(figure, "svg").decode()
            drawn[key] = (Figure(name, about, svg), render(figure, "png"))

    for evaluation, kind in found.kinds.items():
        for axis in kind.axes:
            about = f"Accuracy by {curves.NAMED[axis][0]} on {evaluation}, per mixture"
            add((f"accuracy-by-{axis}", evaluation), about, _along(found, evaluation, axis, palette))
        if kind.grid:
            said = _asked(found, evaluation)
            add(
                ("heatmap", evaluation),
                f"Accuracy by context length and needle depth on {evaluation}, per mixture",
                heatmaps.accuracy_grid(found.scores, evaluation, palette, f"{said}; numbers: accuracy in %"),
            )
            said += "; numbers: points; bordered: differs from the base after Holm's correction"
            add(
                ("heatmap-change", evaluation),
                f"Change against the base by context length and needle depth on {evaluation}, per mixture",
                heatmaps.change_grid(found.scores, evaluation, palette, said),
            )
        if kind.outcomes:
            about = f"Kinds of answers on {evaluation}, per mixture"
            add(("answers", evaluation), about, _answers(found, evaluation))
    _changes(found, palette, add)
    _losses(found, add)
    return drawn


def file_name(key: Key, taken: Collection[str]) -> str:
    """Return what a figure's files are called, without suffix: like none of ``taken``, whatever the case of letters.

    Joined by hyphens, ("heatmap", "change-x") and ("heatmap-change", "x") are alike; so are "mdqa[documents=10]" and
    "mdqa-documents-10" where only letters, digits and . _ - stay; and MDQA is mdqa to many file systems.
    """
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(key)).strip("-")[:_LONGEST]
    names = {other.lower() for other in taken}
    numbered = (f"{name}-{number}" for number in itertools.count(2))
    return next(each for each in itertools.chain([name], numbered) if each.lower() not in names)


def seeds(found: Found, evaluations: Sequence[str] | None = None) -> str:
    """Return ", mean of 3 seeds" where finetunes have several."""
    rows = found.predictions.filter(pl.col("seed").is_not_null())
    if evaluations is not None:
        rows = rows.filter(pl.col("evaluation").is_in(list(evaluations)))
    cells = rows.group_by("evaluation", "model").agg(pl.col("seed").n_unique())
    counts = cells["seed"].unique().sort().to_list()
    if not counts or counts == [1]:
        return ""
    return f", mean of {counts[0]} seeds" if len(counts) == 1 else f", mean of {counts[0]} to {counts[-1]} seeds"


def _along(found: Found, evaluation: str, axis: Axis, palette: Palette) -> Any:
    levels = _levels(found, evaluation) if axis == "position" else []
    beside = published.curves(found, evaluation, axis)
    said = f"{_asked(found, evaluation, axis)}; bands: 95 % intervals of each accuracy"
    said += "; thin lines: the same questions, grey areas: range of the finetunes" if levels else ""
    said += f"; hollow: {published.credit(found, evaluation, axis)}" if beside else ""
    return curves.accuracy_along(axis, found.scores, evaluation, palette, said, levels, beside)


def _asked(found: Found, evaluation: str, axis: Axis | None = None) -> str:
    """Return what was asked how often: "mdqa (20 documents), 200 questions at each position"."""
    by = [axis] if axis else ["length", "depth"]
    placed = pl.all_horizontal(pl.col(name).is_not_null() for name in by)
    rows = found.predictions.filter((pl.col("evaluation") == evaluation) & placed)
    per = rows.group_by(by).agg(pl.col("question_id").n_unique())["question_id"].unique().sort().to_list()
    counts = f"{per[0]:,}" if len(per) == 1 else f"{per[0]:,} to {per[-1]:,}"
    where = axis or "length and depth"
    noun = "question" if per == [1] else "questions"
    name = words.described(found.predictions, evaluation)
    subtasks = rows["subtask"].drop_nulls().unique().sort().to_list()
    if found.kinds[evaluation].grid and not axis and len(subtasks) == 1:
        name = f"{evaluation} ({subtasks[0]})"
    return f"{name}, {counts} {noun} at each {where}{seeds(found, [evaluation])}"


def _levels(found: Found, evaluation: str) -> list[curves.Level]:
    made = []
    for name, rows in profile.bounds(found.predictions, found.kinds, evaluation).items():
        by_model = {row["model"]: row["accuracy"] for row in accuracy(rows, ["model"]).iter_rows(named=True)}
        base = by_model.pop(BASE, None)
        tuned = [each for each in by_model.values() if each is not None]
        ends = (min(tuned), max(tuned)) if tuned else (None, None)
        made.append(curves.Level(name, name.endswith("(closed book)"), base, *ends))
    return made


def _answers(found: Found, evaluation: str) -> Any:
    shares = outcomes.shares(found.predictions, evaluation)
    if shares["outcome"].n_unique() == 1:
        return None  # full bars of one colour: a sentence says it
    counts = shares["n"].unique().sort().to_list()
    number = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
    said, about = {}, f"{number} answers of each model{seeds(found, [evaluation])}"
    if outcomes.INVENTION in shares["outcome"]:
        about += "; at the end: of the wrong answers, how many are inventions, with its 95 % interval"
        for row in outcomes.inventions(found.predictions, evaluation).iter_rows(named=True):
            if row["share"] is not None:
                said[row["model"]] = (
                    f"{words.percent(row['share'], 0)}  ({_whole(row['low'])} to {_whole(row['high'])})"
                )
    return bars.outcome_bars(shares, evaluation, about, said)


def _whole(share: float) -> str:
    return f"{100 * share:.0f}"


def _changes(found: Found, palette: Palette, add: Any) -> None:
    against = found.comparisons.filter((pl.col("family") == OVERALL) & pl.col("difference").is_not_null())
    compared = set(against["evaluation"].to_list())
    knowledge = [evaluation for evaluation in found.measuring("knowledge") if evaluation in compared]
    if knowledge:
        rows = found.predictions.filter(pl.col("evaluation").is_in(knowledge))
        asked = f"{rows['question_id'].n_unique():,} closed-book questions{seeds(found, knowledge)}"
        subtitle = f"{asked}; bars: 95 % intervals of the paired difference; verdicts after Holm's correction"
        figure = differences.knowledge_change(found.comparisons, knowledge, palette, subtitle)
        add(("knowledge-change",), "Change in closed-book accuracy against the base, per mixture", figure)
    general = [evaluation for evaluation in found.measuring("benchmark") if evaluation in compared]
    if general:
        theirs = published.changes(found)
        subtitle = f"bars: 95 % intervals of the paired difference{seeds(found, general)}"
        subtitle += (
            "; hollow: published, without interval" if any(evaluation in general for evaluation, _ in theirs) else ""
        )
        figure = differences.benchmark_changes(found.comparisons, general, palette, subtitle, theirs)
        add(("benchmark-change",), "Change on general benchmarks against the base, per mixture", figure)
    retrieval = [evaluation for evaluation in found.measuring("retrieval") if evaluation in compared]
    for closed in knowledge if len(knowledge) * len(retrieval) <= _PAIRS else knowledge[:1]:
        for found_by in retrieval:
            subtitle = "bars: 95 % intervals of the paired differences to the base, questions resampled"
            figure = differences.gain_against_loss(found.comparisons, found_by, closed, palette, subtitle)
            key = ("gain-against-loss", found_by, closed)
            add(key, f"Change on {found_by} against change on {closed}, per mixture", figure)


def _losses(found: Found, add: Any) -> None:
    """Draw how the loss fell; models that have no predictions yet take the colours behind the others'."""
    models = losses.models(found.losses)
    if not models:
        return
    palette = Palette([*found.models, *(model for model in models if model not in found.models)])
    rows, both = losses.curves(found.losses), losses.split(found.losses)
    seeds = max(rows["seeds"].to_list())
    said = f"mean cross entropy of the answers, averaged over each {100 // losses.BINS} % of the training"
    said += f"; lines: mean of {seeds} seeds, bands: their range" if seeds > 1 else ""
    title = "Loss by share of training done"
    if len(models) > descent.TOGETHER:
        said += "; solid: tokens that hold a digit, dashed: the words around them" if both else ""
        said += f"; the first {descent.SHOWN} of {len(models)}" if len(models) > descent.SHOWN else ""
        add(("loss",), f"{title}, a panel per mixture", descent.apart(rows, palette, (title, said)))
        return
    figure = descent.together(rows, ["all"], palette, (f"{title}: all answer tokens", said))
    add(("loss",), f"{title}, per mixture", figure)
    if both:
        figure = descent.together(rows, ["integers", "words"], palette, (f"{title}: integers and words", said))
        add(("loss-by-kind",), f"{title}, integers and the words around them, per mixture", figure)
