"""A sweep's results for a terminal, a row per model and a column per evaluation; and in plain values for programs."""

from __future__ import annotations

from typing import Any

import polars as pl

from kvray.report import findings
from kvray.report import text as words
from kvray.results.comparisons import AXES, whole
from kvray.results.frames import BASE
from kvray.results.snapshot import Found, collect
from kvray.store.store import Store

WIDTH = 158
"""Characters of a line at most, as far as one evaluation fits beside the models' names."""
_GAP = "  "


def summary(store: Store, sweep: str) -> list[str]:
    """Return the results in lines for a terminal: a row per model, a column per evaluation.

    Evaluations that do not fit side by side follow in further blocks.

    Raises:
        InputError: the store knows no such sweep.
    """
    found = collect(store, sweep)
    cells = found.planned("predictions")
    done = sum(cell["id"] in found.manifests for cell in cells)
    head = f"{sweep}: {done} of {len(cells)} cells evaluated"
    if not found.kinds:
        return [head, "no predictions yet"]
    note = "accuracy, change against the base in points with its 95 % interval, verdict after Holm's correction"
    names = ["", BASE, *found.models]
    columns = [_column(found, evaluation) for evaluation in found.kinds]
    return [head, *blocks(names, columns, WIDTH), note]


def document(store: Store, sweep: str) -> dict[str, Any]:
    """Return the results in plain values, for ``kvray report --json``.

    Raises:
        InputError: the store knows no such sweep.
    """
    found = collect(store, sweep)
    cells = found.planned("predictions")
    rows = whole(found.scores).select(pl.col("model"), pl.exclude("sweep", "base_model", "model", *AXES))
    lacking = [
        {"id": a["id"], "kind": a["kind"], "state": state, "why": why} for a, state, why in findings.absent(found)
    ]
    return {
        "sweep": sweep,
        "base_model": found.document.get("base_model"),
        "planned": len(cells),
        "evaluated": sum(cell["id"] in found.manifests for cell in cells),
        "scores": rows.to_dicts(),
        "missing": lacking,
    }


def blocks(names: list[str], columns: list[list[str]], width: int) -> list[str]:
    """Set columns side by side behind ``names``, as many as fit; the rest in further blocks, a blank line between.

    Args:
        names: a cell per line.
        columns: as many cells each.
        width: characters of a line; a single column may be wider.
    """
    first = max(map(len, names))
    groups: list[list[list[str]]] = [[]]
    used = first
    for column in columns:
        wide = len(_GAP) + max(map(len, column))
        if groups[-1] and used + wide > width:
            groups.append([])
            used = first
        groups[-1].append(column)
        used += wide
    lines: list[str] = []
    for group in groups:
        lines += [""] if lines else []
        widths = [first, *(max(map(len, column)) for column in group)]
        for row in zip(names, *group, strict=True):
            lines.append(_GAP.join(cell.ljust(wide) for cell, wide in zip(row, widths, strict=True)).rstrip())
    return lines


def _column(found: Found, evaluation: str) -> list[str]:
    rows = {r["model"]: r for r in whole(found.scores).iter_rows(named=True) if r["evaluation"] == evaluation}
    column = [words.described(found.predictions, evaluation)]
    for model in [BASE, *found.models]:
        row = rows.get(model)
        if row is None:
            column.append("missing")
            continue
        shown = words.percent(row["accuracy"])
        if row["difference"] is not None:
            low, high = words.signed(row["difference_low"]), words.signed(row["difference_high"])
            shown += f"  {words.signed(row['difference'])} ({low} to {high}) {row['verdict']}"
        column.append(shown)
    return column
