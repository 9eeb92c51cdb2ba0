"""How far the seeds of one mixture lie apart, measured on the finetunes that a store has."""

from __future__ import annotations

from contextlib import suppress

import polars as pl

from kvray.errors import InputError, StoreError
from kvray.results.reader import Results
from kvray.store.store import Store

_MODEL = ["evaluation", "mixture", "finetune"]


def spread_of_seeds(store: Store, base_model: str, method: str) -> dict[str, float]:
    """Return the standard deviation of accuracy between seeds, as a share, by evaluation.

    Pooled over the mixtures of every sweep on this base model and finetuning method that has committed predictions of
    two seeds or more; "" pools all evaluations. The noise of the questions is in it, since a finetune's accuracy is
    known from them alone, and makes it a little too large. Empty where nothing was measured.
    """
    parts = []
    for sweep in store.sweeps():
        with suppress(InputError, StoreError):
            if store.plan_document(sweep).get("base_model") != base_model:
                continue
            scored = pl.col("seed").is_not_null() & pl.col("score").is_not_null()
            rows = Results(store).predictions(sweep, skip_damaged=True).filter(scored)
            rows = rows.filter(pl.col("finetune").str.starts_with(method))
            means = rows.group_by("artefact", *_MODEL, "seed").agg(pl.col("score").mean())
            parts.append(means.with_columns(sweep=pl.lit(sweep)).collect())
    if not parts:
        return {}
    every = pl.concat(parts).unique("artefact").group_by("sweep", *_MODEL).agg(pl.col("score").var(), seeds=pl.len())
    every = every.filter(pl.col("seeds") > 1).with_columns(df=pl.col("seeds") - 1)
    pooled = ((pl.col("score") * pl.col("df")).sum() / pl.col("df").sum()).sqrt().alias("spread")
    by_evaluation = {str(name): float(value) for name, value in every.group_by("evaluation").agg(pooled).rows()}
    return {**by_evaluation, "": float(every.select(pooled).item())} if by_evaluation else {}
