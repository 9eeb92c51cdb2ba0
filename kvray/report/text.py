"""Numbers as text (a dash for a missing one, a true minus sign), lines of tables, and the notes below them."""

import tomllib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

import polars as pl

from kvray.results.frames import BASE, FINETUNES, MIXTURES
from kvray.results.profile import AXES
from kvray.results.snapshot import Snapshot

Row = Mapping[str, Any]  # A row of the scores
DASH = "\u2013"
ARROWS = {"better": " \u25b2", "worse": " \u25bc"}
"""Suffix, by verdict, of a number that differs from the base's after Holm's correction."""


@cache
def notes() -> dict[str, Any]:
    """Return what the report says below its tables and figures, by name (``notes.toml``)."""
    return tomllib.loads((resources.files("kvray.report") / "notes.toml").read_text(encoding="utf-8"))


class Linked(str):
    """Text of a table's cell, or about a figure's point, that leads to the answers behind it.

    ``to`` are filters of the page's section of answers, by name: evaluation, model, an axis, ``beside``.
    """

    to: Mapping[str, Any]

    def __new__(cls, text: str, to: Mapping[str, Any]) -> "Linked":
        """Return the text, with its filters."""
        linked = super().__new__(cls, text)
        linked.to = to
        return linked

    @classmethod
    def of(cls, text: str, row: Row, **more: str) -> str:
        """Return text about a row of scores that leads to the answers that the row counts; plain if there are none."""
        to = {name: row[name] for name in ("evaluation", "model", *AXES) if row.get(name) is not None}
        return cls(text, to | more) if row["n"] else text


def signed(share: float) -> str:
    """Return a difference of shares as points with its sign: "+12.3", "0.0"."""
    points = round(100 * share, 1)
    return f"{points:+.1f}".replace("-", "\u2212") if points else "0.0"


def change(difference: float | None, low: float | None, high: float | None) -> str:
    """Return a difference with its interval: "+12.3 (+8.1 to +16.5)"."""
    if difference is None or low is None or high is None:
        return DASH
    return f"{signed(difference)} ({signed(low)} to {signed(high)})"


def percent(share: float | None, digits: int = 1) -> str:
    """Return a share as "57.1 %"."""
    return DASH if share is None else f"{100 * share:.{digits}f} %"


def interval(low: float | None, high: float | None) -> str:
    """Return an interval of shares as "50.2 to 63.7"."""
    return DASH if low is None or high is None else f"{100 * low:.1f} to {100 * high:.1f}"


def p_value(p: float | None) -> str:
    """Return p as "0.031" or "< 0.001"."""
    if p is None:
        return DASH
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def count(number: float | None) -> str:
    """Return a number rounded, with separated thousands: "2,655"."""
    return DASH if number is None else f"{number:,.0f}"


def counts(numbers: Sequence[int]) -> str:
    """Return the range of sorted numbers: "200", "3 to 1,200"."""
    return " to ".join(f"{number:,}" for number in dict.fromkeys([numbers[0], numbers[-1]]))


def duration(seconds: float | None) -> str:
    """Return a measured time as "9.5 s", "41 s", "6 min 40 s" or "3 h 05 min"."""
    if seconds is None:
        return DASH
    rounded = round(seconds)
    if rounded < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{rounded} s"
    if rounded < 3600:
        return f"{rounded // 60} min {rounded % 60:02d} s"
    return f"{rounded // 3600} h {rounded % 3600 // 60:02d} min"


def listed(names: Sequence[str]) -> str:
    """Return "a", "a and b", "a, b and c", or "none"."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names) or "none"


def plural(number: int, noun: str) -> str:
    """Return the noun in its singular or plural: "mixture", "mixtures"."""
    return noun if number == 1 else f"{noun}s"


def judged(row: Mapping[str, Any]) -> str:
    """Return a verdict in words that say no more than it does: "better", but of one seed "this finetune: better"."""
    verdict = str(row["verdict"])
    return f"this finetune: {verdict}" if row["about"] == FINETUNES and verdict in ARROWS else verdict


def subject(about: Sequence[str | None]) -> str:
    """Return what verdicts are about, in the singular: "mixture", "finetune" (one seed), or "finetuned model" if mixed.

    ``about`` are their values of the column of that name; null, of the base model, does not count.
    """
    found = set(about) - {None}
    return "mixture" if found == {MIXTURES} else "finetune" if found == {FINETUNES} else "finetuned model"


def bold(model: str) -> str:
    """Return a model's name for a table, bold unless it is the base."""
    return model if model == BASE else f"**{model}**"


def marked(row: Mapping[str, Any] | None, digits: int) -> str:
    """Return the accuracy in a row of scores, with an arrow where it differs from the base's, linked to its answers."""
    if row is None:
        return DASH
    return Linked.of(percent(row["accuracy"], digits) + ARROWS.get(row["verdict"] or "", ""), row)


def flips(row: Row) -> str:
    """Return the change against the base in a row of scores, linked to the answers that it comes from.

    A fall leads to what the base had right and the model has wrong, a rise to the reverse.
    """
    shown = change(row["difference"], row["difference_low"], row["difference_high"])
    if not row["difference"]:
        return shown
    return Linked.of(shown, row, beside="lost" if row["difference"] < 0 else "won")


def by_model(
    snapshot: Snapshot, rows: pl.DataFrame, column: str, values: Sequence[Any], cell: Callable[[Row | None], str]
) -> dict[str, list[str]]:
    """Return the cells of each model that has any, from its rows of scores at some values of a column."""
    at = {(row["model"], row[column]): row for row in rows.iter_rows(named=True)}
    lines = {model: [at.get((model, value)) for value in values] for model in snapshot.with_base}
    return {model: [cell(row) for row in line] for model, line in lines.items() if any(line)}


def arrows(table: Sequence[Sequence[str]], compared: pl.DataFrame, which: str) -> str:
    """Return what the arrows of a table mean, or that it has none; "" where nothing was compared.

    ``compared`` are the comparisons that were corrected together.
    """
    if not compared.height:
        return ""
    after = f"after Holm's correction over all {compared.height:,} comparisons {which}."
    if subject(compared["about"].to_list()) == "finetune":
        after += " One seed: an arrow is about this finetune, not about the mixture."
    if any(mark.strip() in cell for line in table for cell in line for mark in ARROWS.values()):
        return f"\u25b2 and \u25bc: differs from the base {after}"
    return f"No number here differs from the base {after}"


def seeds_averaged(snapshot: Snapshot, evaluations: list[str]) -> str:
    """Return ", mean of 3 seeds" for a figure's subtitle; "" where no finetune has several."""
    rows = snapshot.predictions.filter(pl.col("seed").is_not_null() & pl.col("evaluation").is_in(evaluations))
    cells = rows.group_by("evaluation", "model").agg(pl.col("seed").n_unique())
    numbers = cells["seed"].unique().sort().to_list()
    return f", mean of {counts(numbers)} seeds" if numbers not in ([], [1]) else ""


def bars(snapshot: Snapshot, evaluations: Sequence[str]) -> str:
    """Return what the bars of a figure of changes are, and its small points where there are several seeds."""
    compared = snapshot.against_base().filter(pl.col("evaluation").is_in(list(evaluations)))
    if subject(compared["about"].to_list()) == "finetune":
        return "one seed; bars: 95 % intervals over questions, of this finetune alone"
    return "bars: 95 % intervals over seeds and questions; small points: the seeds"
