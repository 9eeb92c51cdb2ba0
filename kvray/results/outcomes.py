"""Kinds of answers: how often each was given, and which share of the wrong ones are inventions."""

from typing import Any

import polars as pl

from kvray.results.frames import BASE, codes, models
from kvray.results.stats import ratio, ratio_difference

RIGHT, INVENTION = "right", "invention"
ORDER = (RIGHT, "partial", "refusal", "other", "wrong", INVENTION)
"""From the best kind to the worst; a kind not listed here goes before the last."""
_INVENTED = {
    "model": pl.String,
    "wrong": pl.Int64,
    **dict.fromkeys(("share", "low", "high", "difference", "difference_low", "difference_high"), pl.Float64),
}


def ordered(outcomes: list[str]) -> list[str]:
    """Return kinds of answers in :data:`ORDER`."""
    return sorted(outcomes, key=lambda kind: (ORDER.index(kind) if kind in ORDER else len(ORDER) - 1.5, kind))


def shares(predictions: pl.DataFrame, evaluation: str) -> pl.DataFrame:
    """Return the share of each kind of answer over the rows that were run, averaged over seeds per example.

    Columns: model (the base first), outcome (every kind that any model gave, :func:`ordered`), share, n (rows).
    """
    rows = _run(predictions, evaluation)
    kinds = ordered(rows["outcome"].unique().to_list())
    table = []
    for model in _models(rows):
        of = rows.filter(pl.col("model") == model)
        each = of.group_by("example_id").agg((pl.col("outcome") == kind).mean().alias(kind) for kind in kinds)
        table += [{"model": model, "outcome": kind, "share": each[kind].mean(), "n": of.height} for kind in kinds]
    return pl.DataFrame(table, schema={"model": pl.String, "outcome": pl.String, "share": pl.Float64, "n": pl.Int64})


def inventions(predictions: pl.DataFrame, evaluation: str) -> pl.DataFrame:
    """Return the share of inventions among each model's wrong answers (refusals too), and its change from the base.

    Intervals resample questions, the same ones for both models of a change, which covers the examples that both
    answered. A change here is no change in knowledge: it says how a model errs where it errs. Columns: model (the base
    first), wrong (rows), share, low, high, difference, difference_low, difference_high (null for the base, or where a
    model has no wrong answer).
    """
    rows = _run(predictions, evaluation)
    of = {model: _per_example(rows.filter(pl.col("model") == model)) for model in _models(rows)}
    table = []
    for model, answered in of.items():
        wrong = rows.filter((pl.col("model") == model) & (pl.col("outcome") != RIGHT)).height
        line: dict[str, Any] = {"model": model, "wrong": wrong}
        share = ratio(answered["invented"].to_numpy(), answered["wrong"].to_numpy(), codes(answered))
        if share is not None:
            line |= {"share": share.mean, "low": share.low, "high": share.high}
        if model != BASE and BASE in of:
            both = of[BASE].join(answered, on=["question_id", "example_id"], suffix="_b").sort("example_id")
            base = both["invented"].to_numpy(), both["wrong"].to_numpy()
            tuned = both["invented_b"].to_numpy(), both["wrong_b"].to_numpy()
            if (change := ratio_difference(base, tuned, codes(both))) is not None:
                line |= {"difference": change.mean, "difference_low": change.low, "difference_high": change.high}
        table.append(line)
    return pl.DataFrame(table, schema=_INVENTED)


def _run(predictions: pl.DataFrame, evaluation: str) -> pl.DataFrame:
    return predictions.filter((pl.col("evaluation") == evaluation) & pl.col("outcome").is_not_null())


def _models(rows: pl.DataFrame) -> list[str]:
    return [*([BASE] if BASE in rows["model"] else []), *models(rows)]


def _per_example(rows: pl.DataFrame) -> pl.DataFrame:
    """Return the shares of seeds with a wrong and with an invented answer, by example, in a fixed order."""
    wrong, invented = pl.col("outcome") != RIGHT, pl.col("outcome") == INVENTION
    each = rows.group_by("example_id", "question_id").agg(wrong=wrong.mean(), invented=invented.mean())
    return each.sort("example_id")
