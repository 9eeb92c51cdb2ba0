"""What a finetune scored beside its base model, for its card; from the store's predictions alone."""

from dataclasses import dataclass
from typing import Any

import polars as pl

from kvray.driver.export.find import Found
from kvray.report.text import change, interval, judged, p_value, percent
from kvray.results import frames
from kvray.results.frames import BASE
from kvray.results.reader import Results

_MOST_POSITIONS = 12


@dataclass(frozen=True)
class Scores:
    """Tables of text, a header and rows each; empty where nothing was asked."""

    own: list[list[str]]  # this finetune against the base, by evaluation
    mixture: list[list[str]]  # all seeds of the mixture against the base; empty if there is one seed
    positions: list[tuple[str, list[list[str]]]]  # by evaluation: accuracies of both by gold position
    accuracies: dict[str, float]  # of this finetune, by evaluation
    seeds: int  # of the mixture that were asked


def scores(found: Found) -> Scores:
    """Compare a finetune with its base model on every evaluation of its sweep that both have answered."""
    rows = frames.with_models(Results(found.store).predictions(found.sweep, skip_damaged=True).collect())
    adapter = found.planned.id.rpartition("/")[2]
    own = rows.filter((pl.col("model") == BASE) | (pl.col("adapter") == adapter))
    tuned = own.filter(pl.col("model") != BASE)
    if not tuned.height:
        return Scores([], [], [], {}, 0)
    model = str(tuned["model"][0])
    seeds = rows.filter(pl.col("model") == model)["seed"].n_unique()
    found_ = frames.accuracy(tuned, ["evaluation"])
    accuracies = {row["evaluation"]: row["accuracy"] for row in found_.iter_rows(named=True) if row["n"]}
    if BASE not in own["model"].unique():
        return Scores(_alone(found_), [], [], accuracies, seeds)
    return Scores(
        _table(frames.judge(frames.compare(own, BASE, model))),
        _table(frames.judge(frames.compare(rows, BASE, model))) if seeds > 1 else [],
        _positions(own, model),
        accuracies,
        seeds,
    )


def _table(compared: pl.DataFrame) -> list[list[str]]:
    header = [
        "evaluation",
        "examples",
        "base",
        "this model",
        "difference in points, 95 % interval",
        "p (Holm)",
        "verdict",
    ]
    return [
        header,
        *(
            [
                row["evaluation"],
                f"{row['n']:,}",
                percent(row["a_accuracy"]),
                percent(row["b_accuracy"]),
                change(row["difference"], row["low"], row["high"]),
                p_value(row["p_holm"]),
                judged(row),
            ]
            for row in compared.iter_rows(named=True)
        ),
    ]


def _alone(accuracies: pl.DataFrame) -> list[list[str]]:
    rows = accuracies.iter_rows(named=True)
    return [
        ["evaluation", "examples", "this model", "95 % interval"],
        *([r["evaluation"], f"{r['n']:,}", percent(r["accuracy"]), interval(r["low"], r["high"])] for r in rows),
    ]


def _positions(rows: pl.DataFrame, model: str) -> list[tuple[str, list[list[str]]]]:
    """Return the accuracies by gold position of the evaluations that ask at several, but not at very many."""
    found = []
    shown = (("base", BASE), ("this model", model))
    placed = rows.filter(pl.col("position").is_not_null())
    for evaluation in placed["evaluation"].unique(maintain_order=True):
        table = frames.accuracy(placed.filter(pl.col("evaluation") == evaluation), ["position", "model"])
        at: dict[tuple[Any, Any], str] = {
            (row["position"], row["model"]): percent(row["accuracy"]) for row in table.iter_rows(named=True)
        }
        places = sorted({position for position, _ in at})
        if 1 < len(places) <= _MOST_POSITIONS:
            header = ["gold position", *map(str, places)]
            lines = [[name, *(at.get((place, one), "") for place in places)] for name, one in shown]
            found.append((str(evaluation), [header, *lines]))
    return found
