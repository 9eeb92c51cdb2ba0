"""Published numbers beside ours: matched by evaluation, mixture and place; as curves, as points and as tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from kvray.report import text as words
from kvray.report.blocks import Block, Bullets, Details, Heading, Table, Text
from kvray.report.charts.curves import Published
from kvray.results import frames, references
from kvray.results.comparisons import along
from kvray.results.frames import BASE
from kvray.results.profile import Axis
from kvray.results.snapshot import Found

_SHOWN = 24
_PLACES = ("position", "length", "subtask")
_CHANGES = ("change, ours", "change, theirs", "ours \u2212 theirs")
_SOURCE = ("published by", "on", "certainty")
_LEVELS_ONLY = "No published change has a counterpart here; published accuracies stand beside ours."


def curves(found: Found, evaluation: str, axis: Axis) -> list[Published]:
    """Return the published accuracies along an axis of an evaluation, for the models that the sweep has too.

    Places beyond the sweep's own are left out: there is nothing of ours that they would stand beside.
    """
    rows = _along(found, evaluation, axis)
    works = rows.select("work", "base_model").unique(maintain_order=True).rows()
    made = []
    for (work, base, mixture), part in rows.group_by("work", "base_model", "mixture", maintain_order=True):
        points = tuple((float(row[axis]), row["accuracy"] / 100) for row in part.sort(axis).iter_rows(named=True))
        name = "published" if len(works) == 1 else f"{short(str(work))}, {_model(str(base))}"
        made += [Published(model, name, points) for model in _ours(found, str(mixture))]
    return made


def credit(found: Found, evaluation: str, axis: Axis) -> str:
    """Return who published the curves of a figure, and on which models: "Liu et al. 2023 on gpt-3.5-turbo"."""
    works = _along(found, evaluation, axis).select("work", "base_model").unique(maintain_order=True).rows()
    return words.listed([f"{short(work)} on {_model(base)}" for work, base in works]) if works else ""


def changes(found: Found) -> dict[tuple[str, str], list[float]]:
    """Return the published changes over whole evaluations, as shares, by (evaluation, model of the sweep)."""
    made: dict[tuple[str, str], list[float]] = {}
    for evaluation in found.kinds:
        rows = _whole(_of(found, evaluation)).filter(pl.col("change").is_not_null())
        for row in rows.iter_rows(named=True):
            for model in _ours(found, row["mixture"]):
                made.setdefault((evaluation, model), []).append(row["change"] / 100)
    return made


def lines(found: Found, evaluation: str, axis: Axis, places: list[Any]) -> list[list[str]]:
    """Return rows for a table along an axis: model, who published it, then the accuracy at each of our places."""
    made = []
    rows = _along(found, evaluation, axis)
    for (work, base, mixture), part in rows.group_by("work", "base_model", "mixture", maintain_order=True):
        at = {row[axis]: row["accuracy"] / 100 for row in part.iter_rows(named=True)}
        cells = [words.percent(at.get(place), 0) for place in places]
        said = f"*{short(str(work))}, {_model(str(base))}, {part['certainty'][0]}*"
        if any(place in at for place in places):
            made += [[f"*{model}*", said, *(f"*{cell}*" for cell in cells)] for model in _ours(found, str(mixture))]
    return made


def benchmark_lines(found: Found, model: str, evaluations: list[str]) -> list[list[str]]:
    """Return rows for the table of benchmarks: what others published for a model, a row per work and base model."""
    made: dict[tuple[str, str, str], list[str]] = {}
    for at, evaluation in enumerate(evaluations):
        for row in _whole(_of(found, evaluation)).iter_rows(named=True):
            if model in _ours(found, row["mixture"]):
                key = (row["set"], row["work"], row["base_model"])
                cells = made.setdefault(key, ["\u2013"] * len(evaluations))
                said = [f"{row['accuracy']:.2f}"] if row["accuracy"] is not None else []
                said += [f"({_signed(row['change'])})"] if row["change"] is not None else []
                mark = " ?" if "recalled" in row["certainty"] else ""
                cells[at] = " ".join(said) + mark
    return [
        ["", f"*{short(work)}, {_model(base)}*", *(f"*{cell}*" for cell in cells)]
        for (_, work, base), cells in made.items()
    ]


def beside(found: Found) -> list[Block]:
    """Every published number of the sweep's reference sets that has a counterpart here, beside it."""
    blocks: list[Block] = []
    if found.unknown_sets:
        known = ", ".join(references.sets())
        wrong = f"The sweep's `reference` names no set {words.listed(found.unknown_sets)}; there are: {known}."
        blocks.append(Text(wrong, "warn"))
    rows = [line for evaluation in found.kinds for line in _beside(found, evaluation)]
    if not rows:
        return blocks
    header = ["evaluation", "at", "model", *_CHANGES, "accuracy, ours", "accuracy, theirs", *_SOURCE]
    cells = [_line(row) for row in rows]
    if not any(row["change"] is not None for row in rows):  # accuracies of the base alone
        header, *cells = [[*line[:3], *line[3 + len(_CHANGES) :]] for line in (header, *cells)]
    table = Table(header, cells, left=3, words=len(_SOURCE))
    blocks.append(Bullets(_means(rows)) if any(map(_both, rows)) else Text(_LEVELS_ONLY))
    blocks += [table] if len(rows) <= _SHOWN else [Details(f"All {len(rows)} published numbers beside ours", [table])]
    return [Heading("Beside the published numbers"), *blocks, Bullets(_notes(found, rows))]


def short(work: str) -> str:
    """Return a work without its identifier: "Xiong et al. 2024"."""
    return work.partition(" (")[0]


def _means(rows: list[dict[str, Any]]) -> list[str]:
    """Say for each work and model how far our changes are from its own, on average; unconfirmed ones left out."""
    by_work: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in filter(_both, rows):
        if "recalled" not in row["certainty"]:
            by_work.setdefault((row["work"], row["base_model"]), []).append(row)
    said = []
    for (work, base), there in by_work.items():
        gaps = [100 * row["ours"]["difference"] - row["change"] for row in there]
        inside = sum(100 * row["ours"]["low"] <= row["change"] <= 100 * row["ours"]["high"] for row in there)
        means = [sum(values) / len(values) for values in (gaps, list(map(abs, gaps)))]
        ours, theirs = (sum(values) / len(gaps) for values in zip(*map(_changes_of, there), strict=True))
        said.append(
            f"**{short(work)}** on {_model(base)}, {len(gaps)} {_plural(len(gaps), 'change')} against the base: ours "
            f"{words.signed(ours / 100)}, theirs {words.signed(theirs / 100)} points on average; ours minus theirs is "
            f"{words.signed(means[0] / 100)} on average, {means[1]:.1f} without the sign; {inside} of {len(gaps)} "
            "published changes lie inside our 95 % interval."
        )
    return said


def _changes_of(row: Mapping[str, Any]) -> tuple[float, float]:
    return 100 * row["ours"]["difference"], row["change"]


def _notes(found: Found, rows: list[dict[str, Any]]) -> list[str]:
    notes = [
        "Rows are matched by name: the evaluation's, the mixture's and the place's. *Theirs* is what a work says of "
        "its own data, prompts and scorer, without an interval; *certainty* says how we know it: *primary* was read in "
        "the work or its code, *secondary* in notes or reviews that quote it, *derived* is arithmetic on such numbers, "
        "*recalled* is unconfirmed. A change that a work does not print is the difference of its accuracies."
    ]
    foreign = sorted({row["base_model"] for row in rows if not row["same_base"]})
    if foreign:
        own = found.document.get("base_model") or "another model"
        notes.append(
            f"**Base models differ:** this sweep is on `{own}`; there are numbers on {words.listed(foreign)}. Levels "
            "are not comparable then; changes are, with caution."
        )
    remarks: dict[tuple[str, str], dict[str, None]] = {}
    for row in rows:
        if row["note"]:
            remarks.setdefault((row["work"], row["note"]), {})[f"{row['model']} on {row['evaluation']}"] = None
    return [*notes, *(f"{short(work)}, {words.listed(list(of))}: {note}." for (work, note), of in remarks.items())]


def _beside(found: Found, evaluation: str) -> list[dict[str, Any]]:
    """Return the published cells of an evaluation that our predictions have too, each with ours."""
    made = []
    for row in _of(found, evaluation).iter_rows(named=True):
        rows = found.predictions.filter(pl.col("evaluation") == evaluation)
        for place in _PLACES:
            if row[place] is not None:
                rows = rows.filter(pl.col(place) == row[place])
        for model in _ours(found, row["mixture"]):
            of = rows.filter(pl.col("model") == model)
            if of["score"].count() == 0:
                continue
            ours: dict[str, Any] = {"difference": None, "low": None, "high": None}
            if model != BASE and rows.filter(pl.col("model") == BASE)["score"].count():
                ours |= frames.compare(rows, BASE, model).row(0, named=True)
            accuracy = frames.accuracy(of, []).row(0, named=True)["accuracy"]
            made.append({**row, "model": model, "ours": ours, "ours_accuracy": accuracy})
    return made


def _line(row: Mapping[str, Any]) -> list[str]:
    ours, change = row["ours"], row["change"]
    gap = words.signed(ours["difference"] - change / 100) if _both(row) else "\u2013"
    places = [f"position {row['position']}"] if row["position"] is not None else []
    places += [f"{row['length']:,} tokens"] if row["length"] is not None else []
    places += [row["subtask"]] if row["subtask"] is not None else []
    return [
        row["evaluation"],
        ", ".join(places) or "all",
        row["model"],
        words.change(ours),
        "\u2013" if change is None else _signed(change),
        gap,
        words.percent(row["ours_accuracy"]),
        "\u2013" if row["accuracy"] is None else f"{row['accuracy']:g} %",
        f"{short(row['work'])}, {row['source']}",
        _model(row["base_model"]),
        row["certainty"],
    ]


def _both(row: Mapping[str, Any]) -> bool:
    return row["change"] is not None and row["ours"]["difference"] is not None


def _of(found: Found, evaluation: str) -> pl.DataFrame:
    return references.changes(found.published.filter(pl.col("evaluation") == evaluation))


def _along(found: Found, evaluation: str, axis: Axis) -> pl.DataFrame:
    """Return the published cells along an axis that lie among our places, of models that we have there."""
    rows = _of(found, evaluation)
    if axis not in _PLACES:
        return rows.clear()
    ours = along(found.scores, axis).filter(pl.col("evaluation") == evaluation)
    others = [place for place in _PLACES if place != axis]
    among = pl.col(axis).is_between(ours[axis].min(), ours[axis].max())
    rows = rows.filter(pl.col("accuracy").is_not_null() & pl.col(axis).is_not_null() & among)
    rows = rows.filter(pl.all_horizontal(pl.col(other).is_null() for other in others))
    drawn = set(ours["model"].to_list())
    known = [mixture for mixture in rows["mixture"].unique() if drawn.intersection(_ours(found, mixture))]
    return rows.filter(pl.col("mixture").is_in(known))


def _whole(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.filter(pl.all_horizontal(pl.col(place).is_null() for place in _PLACES))


def _ours(found: Found, mixture: str) -> list[str]:
    """Return the models of the sweep that a published mixture stands beside."""
    if mixture == BASE:
        return [BASE]
    of = found.predictions.filter(pl.col("mixture") == mixture)
    return [model for model in found.models if model in of["model"]]


def _model(name: str) -> str:
    return name.rpartition("/")[2]


def _signed(points: float) -> str:
    """Return points with their sign, as precise as papers print them."""
    said = f"{points:+.2f}" if round(points, 2) else "0"
    return (said[:-1] if said.endswith("0") and "." in said else said).replace("-", "\u2212")


def _plural(number: int, noun: str) -> str:
    return noun if number == 1 else f"{noun}s"
