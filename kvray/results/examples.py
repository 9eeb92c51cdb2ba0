"""Predictions joined with what was asked: the prompt of each row, its accepted answers, and where the answer stands."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import polars as pl

from kvray.errors import DamagedArtefactError
from kvray.store.manifest import Manifest
from kvray.store.store import Store
from kvray.tasks import load_all
from kvray.tasks.base import REGISTRY, Task

_TEXTS = pl.List(pl.String)
_ASKED: dict[str, Any] = {
    "dataset": pl.String,
    "example_id": pl.String,
    "prompt": pl.String,
    "references": _TEXTS,
    "gold": _TEXTS,
}


def with_prompts(store: Store, predictions: pl.DataFrame) -> pl.DataFrame:
    """Add what was asked to rows of predictions, in their order; they need the columns artefact and example_id.

    Added, or replaced, are: ``dataset``, the id of the evaluation's dataset; ``prompt``, the user message;
    ``references``, the accepted answers (those of the predictions, where they are there); ``gold``, pieces of the
    prompt that hold the answer, verbatim, empty where the task tells none. A benchmark of lm-evaluation-harness has no
    dataset: dataset and prompt are null. So is the prompt where the dataset is damaged or not in the store any more.
    """
    if "dataset" not in predictions.columns:
        predictions = predictions.with_columns(dataset=_datasets(store, predictions["artefact"]))
    wanted = predictions.select("dataset", "example_id").drop_nulls().unique()
    asked = {str(dataset): part["example_id"].to_list() for (dataset,), part in wanted.group_by("dataset")}
    manifests = store.read_manifests(list(asked))
    parts = [_asked(store, manifest, asked[one]) for one, manifest in manifests.items()]
    kept = predictions.drop("prompt", "gold", strict=False)
    prompts = pl.concat([pl.DataFrame(schema=_ASKED), *parts])
    joined = kept.join(prompts, on=["dataset", "example_id"], how="left", maintain_order="left")
    if "references_right" in joined.columns:
        joined = joined.drop("references_right")
    return joined.with_columns(pl.col("gold").fill_null(pl.lit([], dtype=_TEXTS)))


def _datasets(store: Store, artefacts: pl.Series) -> pl.Series:
    """Return the dataset of each row's predictions, by their manifests."""
    found = store.read_manifests(artefacts.unique().to_list())
    datasets = {
        one: next((need for need in manifest.needs if need.startswith("datasets/")), None)
        for one, manifest in found.items()
    }
    return pl.Series("dataset", [datasets.get(one) for one in artefacts], dtype=pl.String)


def _asked(store: Store, dataset: Manifest, ids: Collection[str]) -> pl.DataFrame:
    """Return prompt, references and gold of some examples of a dataset."""
    try:
        stored = pl.DataFrame(store.read_table(dataset.id))
    except DamagedArtefactError:
        return pl.DataFrame(schema=_ASKED)
    chosen = stored.filter(pl.col("example_id").is_in(list(ids)))
    task = _task(dataset)
    gold = [_gold(task, row) for row in chosen.iter_rows(named=True)]
    return chosen.select(
        pl.lit(dataset.id).alias("dataset"), "example_id", "prompt", "references", pl.Series("gold", gold, dtype=_TEXTS)
    )


def _task(dataset: Manifest) -> Task | None:
    """Return the task that made a dataset, without what its recipe leaves out; None for one that is not at hand."""
    load_all()
    values: dict[str, Any] = dataset.recipe.get("task") or {}
    kind = REGISTRY.get(values.get("task", ""))
    # Not validated: paths of sources are no part of a recipe, and other fields may only fit with them.
    return None if kind is None else kind.model_construct(**values)


def _gold(task: Task | None, row: dict[str, Any]) -> list[str]:
    return [] if task is None else [piece for piece in task.gold(row) if piece and piece in row["prompt"]]
