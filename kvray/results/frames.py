"""Accuracies with intervals and paired comparisons, as pure functions of polars frames of predictions.

Rows without a score (prompts too long to run) are excluded and counted. Scores are averaged over seeds first, example
by example, so that each example has the same weight.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from kvray.errors import InputError
from kvray.results import stats

BASE = "base"
"""Name of the base model in the column ``model``, in tables and in figures, and of no other model."""
COMPARED: dict[str, Any] = {
    **dict.fromkeys(("a", "b"), pl.String),
    **dict.fromkeys(("n", "questions"), pl.Int64),
    **dict.fromkeys(("a_accuracy", "b_accuracy", "difference", "low", "high"), pl.Float64),
    **dict.fromkeys(("better", "worse"), pl.Int64),
    **{"test": pl.String, "p": pl.Float64},
    **dict.fromkeys(("unmatched", "excluded"), pl.Int64),
}
"""Columns of a comparison, after those that it is split by."""
_EXAMPLE = ["evaluation", "example_id"]


def with_models(predictions: pl.DataFrame) -> pl.DataFrame:
    """Add the column ``model``: "base" (no mixture), the mixture, or "mixture finetune" where it has several finetunes.

    A shared method is left out: "ours [learning_rate=1e-05]". A mixture "base" (once allowed) becomes "base (mixture)".
    """
    pairs = predictions.select("mixture", "finetune").unique(maintain_order=True)
    named = pairs.with_columns(pl.Series("model", _names(pairs.rows()), dtype=pl.String))
    return predictions.join(named, on=["mixture", "finetune"], how="left", nulls_equal=True, maintain_order="left")


def _names(pairs: Sequence[tuple[str | None, str | None]]) -> list[str]:
    mixtures = [mixture for mixture, _ in pairs]
    methods = {(finetune or "").partition("[")[0] for mixture, finetune in pairs if mixture is not None}
    taken = {BASE}
    names = []
    for mixture, finetune in pairs:
        if mixture is None:
            names.append(BASE)
            continue
        method, varied, settings = (finetune or "").partition("[")
        label = f"{'' if len(methods) == 1 else method}{varied}{settings}"
        name = f"{mixture} {label}".strip() if mixtures.count(mixture) > 1 else mixture
        while name in taken:
            name += " (mixture)"
        taken.add(name)
        names.append(name)
    return names


def models(predictions: pl.DataFrame) -> list[str]:
    """Return the finetuned models in the order of their first rows."""
    return [str(m) for m in predictions["model"].unique(maintain_order=True) if m != BASE]


def accuracy(predictions: pl.DataFrame, by: Sequence[str]) -> pl.DataFrame:
    """Return mean scores by any columns (none: all rows together) with 95 % intervals clustered by question.

    Columns: ``by`` (sorted), n (scored rows), questions, seeds, excluded (rows without a score), accuracy, low, high
    (null where nothing was scored). Raises InputError if the predictions lack a column.
    """
    check_columns(predictions, by)
    groups = predictions.group_by(list(by), maintain_order=True) if by else [((), predictions)]
    rows = []
    for key, group in groups:
        scored = _per_example(group)
        row = dict(zip(by, key, strict=True)) | {
            "n": group["score"].count(),
            "questions": scored["question_id"].n_unique(),
            "seeds": group["seed"].drop_nulls().n_unique(),
            "excluded": group["score"].null_count(),
        }
        if scored.height:
            interval = stats.accuracy(scored["score"].to_numpy(), codes(scored))
            row |= {"accuracy": interval.mean, "low": interval.low, "high": interval.high}
        rows.append(row)
    schema: dict[str, Any] = {name: predictions.schema[name] for name in by}
    schema |= dict.fromkeys(("n", "questions", "seeds", "excluded"), pl.Int64)
    schema |= dict.fromkeys(("accuracy", "low", "high"), pl.Float64)
    table = pl.DataFrame(rows, schema=schema)
    return table.sort(list(by), nulls_last=False, maintain_order=True) if by else table


def compare(predictions: pl.DataFrame, a: str, b: str, by: Sequence[str] = ()) -> pl.DataFrame:
    """Compare model ``b`` with the reference ``a`` on the examples that both answered, split by evaluation and ``by``.

    Columns: evaluation, ``by``, then :data:`COMPARED`: n counts pairs; better and worse, discordant pairs; unmatched,
    examples that only one of the two answered; excluded, rows without a score. Null where there is no pair.
    :func:`judge` adds Holm's p and the verdict. Raises InputError for an unknown model or column.
    """
    check_columns(predictions, by)
    known = predictions["model"].unique(maintain_order=True).to_list()
    if missing := [name for name in (a, b) if name not in known]:
        raise InputError(f"no model {' and no '.join(map(repr, missing))}; expected one of: {', '.join(known)}")
    return Pairs(predictions.filter(pl.col("model").is_in([a, b])), by).compare(a, b)


def judge(comparisons: pl.DataFrame) -> pl.DataFrame:
    """Add p_holm, corrected over all rows given, and the verdict: better, worse, within noise or not compared."""
    p = comparisons["p"].fill_null(np.nan).to_numpy().astype(np.float64)
    corrected = stats.holm(p)
    columns = comparisons.select("difference", "low", "high").iter_rows()
    verdicts = [
        "not compared" if difference is None else stats.verdict(difference, low, high, float(p_holm))
        for (difference, low, high), p_holm in zip(columns, corrected, strict=True)
    ]
    return comparisons.with_columns(
        pl.Series("p_holm", corrected, dtype=pl.Float64).fill_nan(None),
        pl.Series("verdict", verdicts, dtype=pl.String),
    )


def _per_example(rows: pl.DataFrame) -> pl.DataFrame:
    """Return one row per scored example with its mean over seeds, in a fixed order."""
    scored = rows.filter(pl.col("score").is_not_null())
    return scored.group_by("question_id", *_EXAMPLE).agg(pl.col("score").mean()).sort("question_id", *_EXAMPLE)


def codes(rows: pl.DataFrame) -> NDArray[np.int64]:
    """Return the question of each row as a code 0..k-1. Shape ``(rows,)``."""
    return rows["question_id"].rank("dense").to_numpy().astype(np.int64) - 1


def check_columns(predictions: pl.DataFrame, by: Sequence[str]) -> None:
    """Raise an InputError that names the columns of ``by`` that the predictions lack."""
    if unknown := [name for name in by if name not in predictions.columns]:
        raise InputError(f"no column {', '.join(unknown)} in the predictions; found: {', '.join(predictions.columns)}")


class Pairs:
    """Pairs the answers of two models; averages the scores of each model over seeds only once."""

    def __init__(self, predictions: pl.DataFrame, by: Sequence[str]) -> None:
        self.split = ["evaluation", *(name for name in by if name != "evaluation")]
        self.types: dict[str, Any] = {name: predictions.schema[name] for name in self.split}
        self.keys = [*self.split, "question_id", "example_id"]
        score = pl.col("score")
        averaged = predictions.group_by("model", *self.keys).agg(score.mean(), excluded=score.null_count())
        self.empty = averaged.clear().drop("model")
        parts = averaged.sort("model", *self.keys).partition_by("model", as_dict=True, include_key=False)
        self.models = {str(key[0]): part for key, part in parts.items()}

    def compare(self, a: str, b: str) -> pl.DataFrame:
        first, second = (self.models.get(model, self.empty) for model in (a, b))
        both = first.join(second, on=self.keys, how="full", coalesce=True, nulls_equal=True, suffix="_b")
        rows = []
        for key, group in both.sort(self.keys).group_by(self.split, maintain_order=True):
            pairs = group.filter(pl.col("score").is_not_null() & pl.col("score_b").is_not_null())
            scored = group["score"].count() + group["score_b"].count()
            row = dict(zip(self.split, key, strict=True)) | {
                "a": a,
                "b": b,
                "n": pairs.height,
                "unmatched": scored - 2 * pairs.height,
                "excluded": int(group["excluded"].sum()) + int(group["excluded_b"].sum()),
            }
            if pairs.height:
                scores = pairs["score"].to_numpy(), pairs["score_b"].to_numpy()
                accuracies = {"a_accuracy": float(scores[0].mean()), "b_accuracy": float(scores[1].mean())}
                row |= accuracies | vars(stats.paired(*scores, codes(pairs)))
            rows.append(row)
        return pl.DataFrame(rows, schema=self.types | COMPARED)
