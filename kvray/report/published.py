"""Published numbers beside ours in curves, points and tables, matched by evaluation, mixture and place."""

from collections.abc import Mapping
from typing import Any

import polars as pl

from kvray.report.blocks import Block, Bullets, Details, Heading, Table, Text
from kvray.report.charts.curves import Published
from kvray.report.text import DASH, change, listed, notes, percent, plural, signed
from kvray.results import frames, references
from kvray.results.frames import BASE
from kvray.results.profile import AXES, Axis, along
from kvray.results.references import PLACES
from kvray.results.snapshot import Snapshot

_SHOWN = 24
_CHANGES = ("change, ours", "change, theirs", "ours \u2212 theirs")
_CURVE = ("work", "base_model", "model")  # columns that identify a published curve
_UNPLACED = [pl.col(place).is_null() for place in PLACES]  # filter of the numbers over whole evaluations
_SOURCE = ("published by", "on", "certainty")
_LEVELS_ONLY = "No published change has a counterpart here; published accuracies stand beside ours."


def curves(snapshot: Snapshot, evaluation: str, axis: Axis) -> list[Published]:
    """Return the published accuracies along an axis, for models of the sweep and within the range of its places."""
    rows = _along(snapshot, evaluation, axis)
    alone = rows.select("work", "base_model").n_unique() == 1
    lines = []
    for (work, base, model), part in rows.group_by(*_CURVE, maintain_order=True):
        at = part.sort(axis.name).select(axis.name, "accuracy").iter_rows()
        points = tuple((float(place), accuracy / 100) for place, accuracy in at)
        lines.append(Published(str(model), "published" if alone else _source(work, base), points))
    return lines


def credit(snapshot: Snapshot, evaluation: str, axis: Axis) -> str:
    """Return the sources of a figure's published curves: "Liu et al. 2023 on gpt-3.5-turbo"."""
    works = _along(snapshot, evaluation, axis).select("work", "base_model").unique(maintain_order=True).rows()
    return listed([_source(work, base, " on ") for work, base in works])


def changes(snapshot: Snapshot) -> dict[tuple[str, str], list[float]]:
    """Return the published changes over whole evaluations, as shares, by (evaluation, our model)."""
    by_cell: dict[tuple[str, str], list[float]] = {}
    rows = snapshot.published.filter(*_UNPLACED, pl.col("change").is_not_null())
    for evaluation, model, points in rows.select("evaluation", "model", "change").iter_rows():
        by_cell.setdefault((evaluation, model), []).append(points / 100)
    return by_cell


def lines(snapshot: Snapshot, evaluation: str, axis: Axis, places: list[Any]) -> list[list[str]]:
    """Return rows for a table along an axis: our model, the source, then the accuracy at each place."""
    table = []
    for (work, base, model), part in _along(snapshot, evaluation, axis).group_by(*_CURVE, maintain_order=True):
        at = dict(part.select(axis.name, pl.col("accuracy") / 100).iter_rows())
        cells = [str(model), f"{_source(work, base)}, {part['certainty'][0]}"]
        if any(place in at for place in places):
            table.append([f"*{cell}*" for cell in (*cells, *(percent(at.get(place), 0) for place in places))])
    return table


def benchmark_lines(snapshot: Snapshot, model: str, evaluations: list[str]) -> list[list[str]]:
    """Return rows for the table of benchmarks: published numbers for a model, a row per work and base model."""
    table: dict[tuple[str, str, str], list[str]] = {}
    rows = snapshot.published.filter(*_UNPLACED, pl.col("model") == model, pl.col("evaluation").is_in(evaluations))
    for row in rows.sort(pl.col("evaluation").cast(pl.Enum(evaluations)), maintain_order=True).iter_rows(named=True):
        cells = table.setdefault((row["set"], row["work"], row["base_model"]), [DASH] * len(evaluations))
        parts = [f"{row['accuracy']:.2f}"] if row["accuracy"] is not None else []
        parts += [f"({_points(row['change'])})"] if row["change"] is not None else []
        cells[evaluations.index(row["evaluation"])] = " ".join(parts)
    return [
        ["", f"*{_source(work, base)}*", *(f"*{cell}*" for cell in cells)] for (_, work, base), cells in table.items()
    ]


def beside(snapshot: Snapshot) -> list[Block]:
    """Every published number of the sweep's reference sets that has a counterpart here, with that."""
    blocks: list[Block] = []
    if snapshot.unknown_sets:
        known = ", ".join(references.sets())
        wrong = f"The sweep's `reference` names no set {listed(snapshot.unknown_sets)}; there are: {known}."
        blocks.append(Text(wrong, "warn"))
    rows = [line for evaluation in snapshot.profiles for line in _beside(snapshot, evaluation)]
    if not rows:
        return blocks
    header = ["evaluation", "at", "model", *_CHANGES, "accuracy, ours", "accuracy, theirs", *_SOURCE]
    cells = [_line(row) for row in rows]
    if not any(row["change"] is not None for row in rows):  # accuracies of the base alone
        header, *cells = [[*line[:3], *line[3 + len(_CHANGES) :]] for line in (header, *cells)]
    table = Table(header, cells, left=3, words=len(_SOURCE))
    blocks.append(Bullets(_means(rows)) if any(map(_both, rows)) else Text(_LEVELS_ONLY))
    blocks += [table] if len(rows) <= _SHOWN else [Details(f"All {len(rows)} published numbers beside ours", [table])]
    remarks = [notes()["published"]]
    if foreign := sorted({row["base_model"] for row in rows if not row["same_base"]}):
        own = snapshot.document.get("base_model") or "another model"
        remarks.append(notes()["different_base_models"].format(own=own, foreign=listed(foreign)))
    works: dict[tuple[str, str], dict[str, None]] = {}
    for row in (row for row in rows if row["note"]):
        works.setdefault((_short(row["work"]), row["note"]), {})[f"{row['model']} on {row['evaluation']}"] = None
    remarks += [f"{work}, {listed(list(of))}: {note}." for (work, note), of in works.items()]
    return [Heading("Beside the published numbers"), *blocks, Bullets(remarks)]


def _means(rows: list[dict[str, Any]]) -> list[str]:
    """Return a sentence per work and model on how far our changes are from its own, on average."""
    by_work: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in filter(_both, rows):
        by_work.setdefault((row["work"], row["base_model"]), []).append(row)
    means = []
    for (work, base), compared in by_work.items():
        n = len(compared)
        ours, theirs = [row["ours"]["difference"] for row in compared], [row["change"] / 100 for row in compared]
        gaps = [our - their for our, their in zip(ours, theirs, strict=True)]
        inside = sum(row["ours"]["low"] <= row["change"] / 100 <= row["ours"]["high"] for row in compared)
        shown = {"work": _short(work), "base": _model(base), "n": n, "changes": plural(n, "change"), "inside": inside}
        shown |= {"ours": signed(sum(ours) / n), "theirs": signed(sum(theirs) / n), "gap": signed(sum(gaps) / n)}
        means.append(notes()["published_means"].format(**shown, apart=100 * sum(map(abs, gaps)) / n))
    return means


def _beside(snapshot: Snapshot, evaluation: str) -> list[dict[str, Any]]:
    """Return the published cells of an evaluation that we have predictions for, with our numbers."""
    cells = []
    answers = snapshot.of(evaluation)
    for row in snapshot.published.filter(pl.col("evaluation") == evaluation).iter_rows(named=True):
        rows = answers.filter(**{place: row[place] for place in PLACES if row[place] is not None})
        model, scored = row["model"], set(rows.filter(pl.col("score").is_not_null())["model"])
        if model not in scored:
            continue
        ours: dict[str, Any] = {"difference": None, "low": None, "high": None}
        if model != BASE and BASE in scored:
            ours |= frames.compare(rows, BASE, model).row(0, named=True)
        accuracy = frames.accuracy(rows.filter(pl.col("model") == model), [])["accuracy"][0]
        cells.append({**row, "ours": ours, "ours_accuracy": accuracy})
    return cells


def _line(row: Mapping[str, Any]) -> list[str]:
    ours, theirs = row["ours"], row["change"]
    return [
        row["evaluation"],
        ", ".join(AXES[place].value.format(row[place]) for place in PLACES if row[place] is not None) or "all",
        row["model"],
        change(ours["difference"], ours["low"], ours["high"]),
        DASH if theirs is None else _points(theirs),
        signed(ours["difference"] - theirs / 100) if _both(row) else DASH,
        percent(row["ours_accuracy"]),
        DASH if row["accuracy"] is None else f"{row['accuracy']:g} %",
        f"{_short(row['work'])}, {row['source']}",
        _model(row["base_model"]),
        row["certainty"],
    ]


def _both(row: Mapping[str, Any]) -> bool:
    return row["change"] is not None and row["ours"]["difference"] is not None


def _along(snapshot: Snapshot, evaluation: str, axis: Axis) -> pl.DataFrame:
    """Return the published cells along an axis that lie between our places and belong to models that we have there."""
    name = axis.name
    if name not in PLACES:
        return snapshot.published.clear()
    ours = along(snapshot.scores, axis).filter(pl.col("evaluation") == evaluation)
    return snapshot.published.filter(
        pl.col("evaluation") == evaluation,
        pl.col("model").is_in(ours["model"].unique()),
        pl.col("accuracy").is_not_null(),
        pl.col(name).is_between(ours[name].min(), ours[name].max()),
        *(pl.col(place).is_null() for place in PLACES if place != name),
    )


def _source(work: object, base_model: object, between: str = ", ") -> str:
    """Return a work without its identifier, and the model that it is on: "Xiong et al. 2024, Mistral-7B"."""
    return f"{_short(str(work))}{between}{_model(str(base_model))}"


def _short(work: str) -> str:
    return work.partition(" (")[0]


def _model(name: str) -> str:
    return name.rpartition("/")[2]


def _points(points: float) -> str:
    """Return points with their sign, as precise as papers print them: "+3.25", "0"."""
    rounded = f"{points:+.2f}" if round(points, 2) else "0"
    return (rounded[:-1] if rounded.endswith("0") and "." in rounded else rounded).replace("-", "\u2212")
