"""How much of what a document would give a model gets out of a long context: the recovery ratio.

``(with context - closed book) / (oracle - closed book)``, of one model on the same questions: 1 where the gold document
among many helps as much as alone, 0 where the context does not help at all, below 0 where it harms. It sets changes in
retrieval apart from changes in knowledge, which raise or lower all three accuracies.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from kvray.results import profile, stats
from kvray.results.frames import check_columns, codes
from kvray.results.profile import Profile
from kvray.tasks.base import Measure

_KEYS = ["evaluation", "knowledge", "ceiling", "model"]
_NUMBERS = ("accuracy", "closed_book", "oracle", "gap_low", "gap_high", "recovery", "low", "high")


def recovery(
    predictions: pl.DataFrame, by: Sequence[str] = (), profiles: Mapping[str, Profile] | None = None
) -> pl.DataFrame:
    """Return recovery ratios with 95 % intervals, of every retrieval whose questions are asked closed book and oracle.

    A retrieval's closed book is the evaluation of the same task that measures knowledge, its oracle the one that
    measures the ceiling; of several, the one with most questions in common. Questions that a model was asked in all
    three ways count; scores are averaged over seeds, and over rows of a question that ``by`` (``position``, ``length``,
    …) does not tell apart. The interval resamples questions, for numerator and denominator together: the paired
    percentile bootstrap of a ratio (:func:`kvray.results.stats.gap_ratio`).

    Columns: evaluation, knowledge, ceiling (names of the three), model, ``by``, questions, accuracy (with context),
    closed_book, oracle, gap_low and gap_high (the interval of oracle - closed book), recovery, low, high: null where
    that interval holds 0, since no ratio is defined where the document itself does not clearly help. Sorted by the
    plan's order of evaluations and models, then by ``by``. Raises InputError if the predictions lack a column.
    """
    check_columns(predictions, by)
    profiles = profile.profiles(predictions) if profiles is None else profiles
    types: dict[str, Any] = dict.fromkeys(_KEYS, pl.String) | {name: predictions.schema[name] for name in by}
    types |= {"questions": pl.Int64} | dict.fromkeys(_NUMBERS, pl.Float64)
    scored = predictions.filter(pl.col("score").is_not_null())
    rows: list[dict[str, Any]] = []
    for name in (name for name, each in profiles.items() if each.measures == "retrieval"):
        asked = scored.filter(pl.col("evaluation") == name)
        floor, ceiling = (_beside(scored, asked, profiles, measure) for measure in ("knowledge", "ceiling"))
        if floor is None or ceiling is None:
            continue
        together = _mean(asked, by).join(_mean(floor[1]).rename({"score": "closed_book"}), on=["model", "question_id"])
        together = together.join(_mean(ceiling[1]).rename({"score": "oracle"}), on=["model", "question_id"])
        names = {"evaluation": name, "knowledge": floor[0], "ceiling": ceiling[0]}
        for model in asked["model"].unique(maintain_order=True):
            own = together.filter(pl.col("model") == model).sort(*by, "question_id", nulls_last=True)
            for place, group in own.group_by(by, maintain_order=True) if by else [((), own)]:
                rows.append({**names, "model": model, **dict(zip(by, place, strict=True)), **_numbers(group)})
    return pl.DataFrame([row for row in rows if row["questions"]], schema=types)


def _beside(
    scored: pl.DataFrame, asked: pl.DataFrame, profiles: Mapping[str, Profile], measure: Measure
) -> tuple[str, pl.DataFrame] | None:
    """Return the evaluation of the same task that measures this and shares most questions, with its rows; or None."""
    names = [name for name, each in profiles.items() if each.measures == measure]
    rows = scored.filter(pl.col("evaluation").is_in(names) & pl.col("task").is_in(asked["task"].unique().to_list()))
    rows = rows.join(asked.select("question_id").unique(), on="question_id", how="semi", maintain_order="left")
    shared = rows.group_by("evaluation", maintain_order=True).agg(pl.col("question_id").n_unique())
    if not shared.height:
        return None
    most = str(shared.sort("question_id", descending=True, maintain_order=True)["evaluation"][0])
    return most, rows.filter(pl.col("evaluation") == most)


def _mean(rows: pl.DataFrame, by: Sequence[str] = ()) -> pl.DataFrame:
    """Return the mean score of each model and question, and of each value of ``by``: over seeds first."""
    keys = ["model", "question_id", *by]
    per_example = rows.group_by(*dict.fromkeys([*keys, "example_id"])).agg(pl.col("score").mean())
    return per_example.group_by(keys).agg(pl.col("score").mean())


def _numbers(group: pl.DataFrame) -> dict[str, Any]:
    if not group.height:
        return {"questions": 0}
    context, floor, ceiling = (group[name].to_numpy() for name in ("score", "closed_book", "oracle"))
    gap = stats.paired(floor, ceiling, codes(group))
    numbers: dict[str, Any] = {
        "questions": group["question_id"].n_unique(),
        "accuracy": float(context.mean()),
        "closed_book": float(floor.mean()),
        "oracle": float(ceiling.mean()),
        "gap_low": gap.low,
        "gap_high": gap.high,
    }
    if gap.low > 0:
        ratio = stats.gap_ratio(context - floor, ceiling - floor, codes(group))
        numbers |= {"recovery": ratio.mean, "low": ratio.low, "high": ratio.high}
    return numbers
