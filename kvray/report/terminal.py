"""A sweep's results as lines for a terminal and as plain values for programs."""

from typing import Any

import polars as pl

from kvray.report.findings import absent
from kvray.report.text import change, judged, percent
from kvray.results.frames import FINETUNES
from kvray.results.profile import AXES, unsplit
from kvray.results.snapshot import Snapshot, collect
from kvray.store.store import Store

WIDTH = 158  # most characters of a line with more than one evaluation
NOTE = "accuracy, change against the base in points with its 95 % interval, verdict after Holm's correction"
ONE_SEED = "this finetune: of one seed, which says nothing about other finetunes of its mixture"
_GAP = "  "


def summary(store: Store, sweep: str) -> list[str]:
    """Return :func:`lines` of a sweep as it stands; InputError if there is no such sweep."""
    return lines(collect(store, sweep))


def lines(snapshot: Snapshot) -> list[str]:
    """Return lines with a row per model and a column per evaluation."""
    done, cells = snapshot.evaluated()
    head = f"{snapshot.sweep}: {done} of {cells} cells evaluated"
    if not snapshot.profiles:
        return [head, "no predictions yet"]
    names = ["", *snapshot.with_base]
    columns = [column(snapshot, evaluation) for evaluation in snapshot.profiles]
    alone = FINETUNES in unsplit(snapshot.scores)["about"]
    return [head, *blocks(names, columns, WIDTH), NOTE, *([ONE_SEED] if alone else [])]


def document(store: Store, sweep: str) -> dict[str, Any]:
    """Return the results in plain values, for ``kvray report --json``; InputError if the store has no such sweep."""
    snapshot = collect(store, sweep)
    done, cells = snapshot.evaluated()
    rows = unsplit(snapshot.scores).select(pl.col("model"), pl.exclude("sweep", "base_model", "model", *AXES))
    return {
        "sweep": sweep,
        "base_model": snapshot.document.get("base_model"),
        "planned": cells,
        "evaluated": done,
        "scores": rows.to_dicts(),
        "missing": [
            {"id": a["id"], "kind": a["kind"], "state": state, "why": why} for a, state, why in absent(snapshot)
        ],
    }


def blocks(names: list[str], columns: list[list[str]], width: int) -> list[str]:
    """Return lines of ``names`` and as many columns as fit into ``width``, the others in further blocks."""
    labels = [name.ljust(max(map(len, names))) for name in names]
    groups, lines = [], labels
    for column in columns:
        wide = max(map(len, column))
        if lines is not labels and len(lines[0]) + len(_GAP) + wide > width:
            groups.append(lines)
            lines = labels
        lines = [f"{line}{_GAP}{cell.ljust(wide)}" for line, cell in zip(lines, column, strict=True)]
    shown = ("\n".join(line.rstrip() for line in group) for group in [*groups, lines])
    return "\n\n".join(shown).split("\n")


def column(snapshot: Snapshot, evaluation: str) -> list[str]:
    """Return the title of an evaluation, and its result for the base and each model."""
    rows = {r["model"]: r for r in unsplit(snapshot.scores).iter_rows(named=True) if r["evaluation"] == evaluation}
    cells = [snapshot.profiles[evaluation].title]
    for model in snapshot.with_base:
        row = rows.get(model)
        shown = "missing" if row is None else percent(row["accuracy"])
        if row is not None and row["difference"] is not None:
            shown += f"  {change(row['difference'], row['difference_low'], row['difference_high'])} {judged(row)}"
        cells.append(shown)
    return cells
