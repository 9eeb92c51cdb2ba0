"""Accuracies with intervals and paired comparisons, as pure functions of polars frames of predictions.

Rows without a score (prompts too long to run) are excluded and counted. Scores are averaged over seeds first, example
by example, so that each example has the same weight.

With several seeds intervals and tests take seeds and questions for random draws (:mod:`kvray.results.crossed`), and
speak of the mixture. With one they take the questions alone for such (:mod:`kvray.results.stats`), and speak of that
one finetune.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from kvray.errors import InputError
from kvray.results import stats
from kvray.results.crossed import Crossed, crossed

BASE = "base"
"""Name of the base model in the column ``model``, in tables and in figures, and of no other model."""
COMPARED: dict[str, Any] = {
    **dict.fromkeys(("a", "b"), pl.String),
    **dict.fromkeys(("n", "questions", "seeds_a", "seeds_b"), pl.Int64),
    **dict.fromkeys(("a_accuracy", "b_accuracy", "difference", "low", "high"), pl.Float64),
    **dict.fromkeys(("seed_error", "question_error"), pl.Float64),
    **dict.fromkeys(("better", "worse"), pl.Int64),
    **{"test": pl.String, "p": pl.Float64},
    **dict.fromkeys(("unmatched", "excluded"), pl.Int64),
}
"""Columns of a comparison, after those that it is split by; :func:`compare` describes them."""
MIXTURES, FINETUNES = "mixtures", "finetunes"
"""What a comparison is about, in the column ``about``."""
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
    """Return mean scores by any columns (none: all rows together) with 95 % intervals.

    The intervals take questions for random, and seeds too where a group holds several of one finetuned model: then they
    are about the mixture. Columns: ``by`` (sorted), n (scored rows), questions, seeds, excluded (rows without a score),
    accuracy, low, high (null where nothing was scored). Raises InputError if the predictions lack a column.
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
            over_seeds = _over_seeds(group, "score") if _one_model(group) else None
            if over_seeds is not None and 0 < over_seeds.mean < 1:
                row["low"], row["high"] = over_seeds.accuracy()
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

    seeds_a and seeds_b count finetunes, 0 for the base model, which is one fixed model. Where a side has several, the
    test is "crossed", low and high are of :class:`~kvray.results.crossed.Crossed`, and seed_error and question_error
    are the standard errors of the difference from either; elsewhere these are null and the test is of
    :func:`~kvray.results.stats.paired`. Two finetuned models are compared seed by seed: one number gives both the same
    first adapter, order and, where they share a dataset, data, and pairs of independent draws are as good as any. Seeds
    that only one of them has count in the difference, not in its errors.

    :func:`judge` adds Holm's p, the verdict and what it is about. Raises InputError for an unknown model or column.
    """
    check_columns(predictions, by)
    known = predictions["model"].unique(maintain_order=True).to_list()
    if missing := [name for name in (a, b) if name not in known]:
        raise InputError(f"no model {' and no '.join(map(repr, missing))}; expected one of: {', '.join(known)}")
    return Pairs(predictions.filter(pl.col("model").is_in([a, b])), by).compare(a, b)


def judge(comparisons: pl.DataFrame) -> pl.DataFrame:
    """Add p_holm, corrected over all rows given, the verdict, and ``about``: what the verdict is about.

    The verdict is better, worse, within noise or not compared. It is about :data:`MIXTURES` where each side has several
    seeds or is the base model, else about :data:`FINETUNES`: others of the same mixture may differ from these.
    """
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
        about=pl.when((pl.col("seeds_a") == 1) | (pl.col("seeds_b") == 1))
        .then(pl.lit(FINETUNES))
        .otherwise(pl.lit(MIXTURES)),
    )


def seed_changes(predictions: pl.DataFrame, evaluations: Sequence[str]) -> dict[tuple[str, str], dict[int, float]]:
    """Return the change against the base of each seed's finetune, by (evaluation, model), on common examples.

    A model with one seed has none: its change is that of the comparison.
    """
    rows = predictions.filter(pl.col("evaluation").is_in(list(evaluations)) & pl.col("score").is_not_null())
    base = rows.filter(pl.col("model") == BASE).select(*_EXAMPLE, base="score")
    tuned = rows.filter(pl.col("seed").is_not_null()).join(base, on=_EXAMPLE, nulls_equal=True)
    change = (pl.col("score") - pl.col("base")).mean().alias("change")
    each = tuned.group_by("evaluation", "model", "seed").agg(change).sort("evaluation", "model", "seed")
    found: dict[tuple[str, str], dict[int, float]] = {}
    for evaluation, model, seed, points in each.rows():
        found.setdefault((evaluation, model), {})[seed] = points
    return {key: seeds for key, seeds in found.items() if len(seeds) > 1}


def _per_example(rows: pl.DataFrame) -> pl.DataFrame:
    """Return one row per scored example with its mean over seeds, in a fixed order."""
    scored = rows.filter(pl.col("score").is_not_null())
    return scored.group_by("question_id", *_EXAMPLE).agg(pl.col("score").mean()).sort("question_id", *_EXAMPLE)


def codes(rows: pl.DataFrame) -> NDArray[np.int64]:
    """Return the question of each row as a code 0..k-1. Shape ``(rows,)``."""
    return rows["question_id"].rank("dense").to_numpy().astype(np.int64) - 1


def _one_model(rows: pl.DataFrame) -> bool:
    """Return whether all rows are of the seeds of one finetuned model."""
    return rows["seed"].null_count() == 0 and rows.select("mixture", "finetune").n_unique() == 1


def _of_mixture(difference: float, over_seeds: Crossed) -> dict[str, Any]:
    """Return the columns of a comparison that take seeds for random; the difference is over all seeds."""
    ends = {"low": max(-1.0, difference - over_seeds.half), "high": min(1.0, difference + over_seeds.half)}
    errors = {"seed_error": over_seeds.from_seeds**0.5, "question_error": over_seeds.from_questions**0.5}
    return {**ends, **errors, "p": replace(over_seeds, mean=difference).p(), "test": "crossed"}


def _over_seeds(rows: pl.DataFrame, column: str) -> Crossed | None:
    """Return the mean of a column with its errors from seeds and questions, each example with the same weight."""
    rows = rows.filter(pl.col(column).is_not_null())
    if rows["seed"].n_unique() < 2:
        return None
    weights = 1 / rows.select(pl.len().over(_EXAMPLE)).to_series().to_numpy()
    seeds = rows["seed"].rank("dense").to_numpy().astype(np.int64) - 1
    return crossed(rows[column].to_numpy(), seeds, codes(rows), weights)


def check_columns(predictions: pl.DataFrame, by: Sequence[str]) -> None:
    """Raise an InputError that names the columns of ``by`` that the predictions lack."""
    if unknown := [name for name in by if name not in predictions.columns]:
        raise InputError(f"no column {', '.join(unknown)} in the predictions; found: {', '.join(predictions.columns)}")


class Pairs:
    """Pairs the answers of two models; averages the scores of each model over seeds only once."""

    def __init__(self, predictions: pl.DataFrame, by: Sequence[str]) -> None:
        self.split = ["evaluation", *(name for name in by if name != "evaluation")]
        self.types: dict[str, Any] = {name: predictions.schema[name] for name in self.split}
        self.keys = [*dict.fromkeys([*self.split, "question_id", "example_id"])]
        score = pl.col("score")
        averaged = predictions.group_by("model", *self.keys).agg(score.mean(), excluded=score.null_count())
        self.empty = averaged.clear().drop("model")
        parts = averaged.sort("model", *self.keys).partition_by("model", as_dict=True, include_key=False)
        self.models = {str(key[0]): part for key, part in parts.items()}
        scored = predictions.filter(score.is_not_null() & pl.col("seed").is_not_null())
        seeded = scored.select("model", "seed", "score", *self.keys).sort("model", *self.keys, "seed")
        of_model = seeded.partition_by("model", as_dict=True, include_key=False)
        self.seeds = {str(key[0]): part for key, part in of_model.items()}

    def compare(self, a: str, b: str) -> pl.DataFrame:
        first, second = (self.models.get(model, self.empty) for model in (a, b))
        both = first.join(second, on=self.keys, how="full", coalesce=True, nulls_equal=True, suffix="_b")
        by_seed = self._by_seed(a, b)
        rows = []
        for key, group in both.sort(self.keys).group_by(self.split, maintain_order=True):
            pairs = group.filter(pl.col("score").is_not_null() & pl.col("score_b").is_not_null())
            scored = group["score"].count() + group["score_b"].count()
            row = dict(zip(self.split, key, strict=True)) | {
                "a": a,
                "b": b,
                "n": pairs.height,
                "seeds_a": self._seeds(a),
                "seeds_b": self._seeds(b),
                "unmatched": scored - 2 * pairs.height,
                "excluded": int(group["excluded"].sum()) + int(group["excluded_b"].sum()),
            }
            if pairs.height:
                scores = pairs["score"].to_numpy(), pairs["score_b"].to_numpy()
                row |= {"a_accuracy": float(scores[0].mean()), "b_accuracy": float(scores[1].mean())}
                row |= vars(stats.paired(*scores, codes(pairs)))
                over_seeds = _over_seeds(by_seed[key], "gap") if key in by_seed else None
                row |= _of_mixture(row["difference"], over_seeds) if over_seeds is not None else {}
            rows.append(row)
        return pl.DataFrame(rows, schema=self.types | COMPARED)

    def _seeds(self, model: str) -> int:
        return self.seeds[model]["seed"].n_unique() if model in self.seeds else 0

    def _by_seed(self, a: str, b: str) -> dict[tuple[Any, ...], pl.DataFrame]:
        """Return the differences of scores seed by seed, by split; a side without several seeds is fixed."""
        several = [model for model in (a, b) if self._seeds(model) > 1]
        if not several or a not in self.models or b not in self.models:
            return {}
        if len(several) == 2:
            first, second, on = self.seeds[a], self.seeds[b], [*self.keys, "seed"]
            if len(set(first["seed"]) & set(second["seed"])) < 2:  # of sweeps that number them otherwise: by rank
                first, second = (each.with_columns(pl.col("seed").rank("dense")) for each in (first, second))
        else:
            sides = (self.seeds[each] if each in several else self.models[each].drop("excluded") for each in (a, b))
            (first, second), on = sides, self.keys
        joined = first.join(second, on=on, nulls_equal=True, suffix="_b", maintain_order="left")
        gaps = joined.with_columns(gap=pl.col("score_b") - pl.col("score"))
        return gaps.partition_by(self.split, as_dict=True, maintain_order=True)
