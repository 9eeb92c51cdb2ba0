"""How far the seeds of one mixture lie apart, as the reports in a store have measured it."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from kvray.store.store import Store

SCORES = "scores.parquet"
_COLUMNS = ["base_model", "evaluation", "mixture", "finetune", "seeds", "accuracy", "spread"]


def spread_of_seeds(store: Store, base_model: str, method: str) -> dict[str, float]:
    """Return the standard deviation of accuracy between seeds, as a share, by evaluation.

    Pooled over the mixtures of every report on this base model and finetuning method that has two seeds or more; ""
    pools all evaluations. The noise of the questions is in it, since a finetune's accuracy is known from them alone,
    and makes it a little too large. Empty where nothing was measured, or by an earlier kvray.
    """
    sums: dict[str, tuple[float, int]] = {}
    # Sweeps may share finetunes: rows that are equal are of the same ones.
    for evaluation, _, seeds, _, spread in sorted(set(_measured(store, base_model, method))):
        for name in (evaluation, ""):
            squares, freedom = sums.get(name, (0.0, 0))
            sums[name] = squares + (seeds - 1) * spread**2, freedom + seeds - 1
    return {name: math.sqrt(squares / freedom) for name, (squares, freedom) in sums.items()}


def _measured(store: Store, base_model: str, method: str) -> Iterator[tuple[str, str, int, float, float]]:
    """Yield evaluation, mixture, number of seeds, their mean accuracy and their spread."""
    for name in store.documents("reports/"):
        if name.count("/") != 2 or not name.endswith(f"/{SCORES}"):
            continue
        try:
            file = pq.ParquetFile(io.BytesIO(store.read_document(name) or b""))
        except (pa.ArrowException, OSError):
            continue
        if not set(_COLUMNS) <= set(file.schema_arrow.names):
            continue
        for row in file.read(columns=_COLUMNS).to_pylist():
            finetuned = row["base_model"] == base_model and str(row["finetune"]).startswith(method)
            if finetuned and row["spread"] is not None:
                mixture = f"{row['mixture']} {row['finetune']}"
                yield row["evaluation"], mixture, row["seeds"], round(row["accuracy"], 9), round(row["spread"], 9)
