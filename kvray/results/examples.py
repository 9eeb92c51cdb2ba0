"""Single examples behind the numbers: predictions chosen by where they stand and how they went, with their prompts."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

import polars as pl

from kvray.errors import DamagedArtefactError, InputError
from kvray.results.frames import BASE
from kvray.store.manifest import Manifest
from kvray.store.store import Store
from kvray.tasks import load_all
from kvray.tasks.base import REGISTRY, Task
from kvray.tasks.problems import unknown

Flip = Literal["lost", "won"]
COLUMNS = (
    "evaluation task model seed example_id question_id position length depth subtask condition history prompt "
    "answer_prefix answer base_answer references gold outcome base_outcome score base_score finish_reason dataset "
    "artefact"
).split()
"""Columns of :meth:`kvray.results.Results.examples`, which describes them."""
_TEXTS = pl.List(pl.String)
_ASKED: dict[str, Any] = {
    "dataset": pl.String,
    "example_id": pl.String,
    "history": pl.String,
    "prompt": pl.String,
    "answer_prefix": pl.String,
    "references": _TEXTS,
    "gold": _TEXTS,
}
_ABSENT = ("history", "answer_prefix")
"""Columns that only some datasets have."""


@dataclass(frozen=True)
class Choice:
    """Which rows: by place (first the evaluation, then the model, …), then by how they went; None takes all.

    ``condition`` may be one of several: "padding=books". ``right`` is a score of 1. ``flipped`` is "lost" where the
    base model was right and this one is wrong, "won" where it is the other way round.
    """

    evaluation: str | None = None
    model: str | None = None
    seed: int | None = None
    position: int | None = None
    length: int | None = None
    depth: float | None = None
    subtask: str | None = None
    condition: str | None = None
    outcome: str | None = None
    right: bool | None = None
    flipped: Flip | None = None

    def places(self, predictions: pl.DataFrame) -> pl.DataFrame:
        """Return the rows at the chosen places, with what the base model said: base_answer, _outcome and _score.

        ``predictions`` are one sweep's, with the column ``model``. Raises InputError for a value that none of the rows
        has which fit the places before it.
        """
        rows = _beside_base(predictions)
        for name in ("evaluation", "model", "seed", "position", "length", "depth", "subtask", "condition"):
            if (value := getattr(self, name)) is not None:
                rows = _at(rows, name, value)
        return rows

    def answers(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Return those of :meth:`places` that went as chosen; InputError for an outcome that none has, or no base."""
        if self.outcome is not None:
            rows = _at(rows, "outcome", self.outcome)
        if self.right is not None:
            rows = rows.filter((pl.col("score") == 1) == self.right)
        if self.flipped is not None:
            if self.flipped not in ("lost", "won"):
                raise InputError(f"flipped: {unknown(self.flipped, ['lost', 'won'], 'one of')}")
            if rows.height and rows["base_score"].null_count() == rows.height:
                raise InputError("flipped: the base model has not answered these examples yet; kvray run asks it")
            base, own = pl.col("base_score") == 1, pl.col("score") == 1
            rows = rows.filter(base & own.not_() if self.flipped == "lost" else own & base.not_())
        return rows


def _beside_base(predictions: pl.DataFrame) -> pl.DataFrame:
    keys = ["evaluation", "example_id"]
    said = {f"base_{name}": pl.col(name) for name in ("answer", "outcome", "score")}
    base = predictions.filter(pl.col("model") == BASE).select(*keys, **said)
    return predictions.join(base, on=keys, how="left", maintain_order="left")


def _at(rows: pl.DataFrame, name: str, value: Any) -> pl.DataFrame:
    """Return the rows with a value in a column; InputError, with the values that there are, if none has it."""
    column = pl.col(name)
    if name == "condition":
        fits = (column == value) | column.str.split(" ").list.contains(str(value))
        known = rows[name].drop_nulls().str.split(" ").explode().unique().sort()
    elif name == "depth":  # stored in single precision
        fits, known = (column - value).abs() < 1e-3, rows[name].drop_nulls().unique().sort().round(2)
    else:
        fits = column == value
        known = rows[name].drop_nulls().unique(maintain_order=name in ("evaluation", "model"))
        known = known if name in ("evaluation", "model") else known.sort()
    found = rows.filter(fits)
    if found.is_empty():
        texts = [f"{each:g}" if isinstance(each, float) else str(each) for each in known]
        raise InputError(f"{name}: {unknown(value, texts, 'one of')}")
    return found


def with_prompts(store: Store, predictions: pl.DataFrame) -> pl.DataFrame:
    """Add what was asked to rows of predictions, in their order; they need the columns artefact and example_id.

    Added are ``dataset``, the id of the evaluation's dataset, and ``references``, the accepted answers, where they are
    not there; added or replaced are ``prompt``, the user message; ``gold``, pieces of the prompt that hold the answer,
    verbatim, empty where the task tells none; ``history``, of chats, the messages before the prompt, as JSON; and
    ``answer_prefix``, what the assistant's turn begins with. A benchmark of lm-evaluation-harness has no dataset:
    dataset and prompt are null. So is the prompt where the dataset is damaged or not in the store any more.
    """
    if "dataset" not in predictions.columns:
        predictions = predictions.with_columns(dataset=_datasets(store, predictions["artefact"]))
    wanted = predictions.select("dataset", "example_id").drop_nulls().unique()
    asked = {str(dataset): part["example_id"].to_list() for (dataset,), part in wanted.group_by("dataset")}
    manifests = store.read_manifests(list(asked))
    parts = [_asked(store, manifest, asked[one]) for one, manifest in manifests.items()]
    kept = predictions.drop("prompt", "gold", *_ABSENT, strict=False)
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
    """Return what some examples of a dataset ask, in the columns of :data:`_ASKED`."""
    try:
        stored = pl.DataFrame(store.read_table(dataset.id))
    except DamagedArtefactError:
        return pl.DataFrame(schema=_ASKED)
    chosen = stored.filter(pl.col("example_id").is_in(list(ids)))
    task = _task(dataset)
    gold = [_gold(task, row) for row in chosen.iter_rows(named=True)]
    absent = [pl.lit(None, pl.String).alias(name) for name in _ABSENT if name not in chosen.columns]
    added = [pl.lit(dataset.id).alias("dataset"), pl.Series("gold", gold, dtype=_TEXTS), *absent]
    return chosen.with_columns(added).select(list(_ASKED))


def _task(dataset: Manifest) -> Task | None:
    """Return the task that made a dataset, without what its recipe leaves out; None for one that is not at hand."""
    load_all()
    values = dataset.recipe.get("task")
    kind = REGISTRY.get(str(values.get("task"))) if isinstance(values, dict) else None
    if kind is None or not isinstance(values, dict):
        return None
    # Not validated: paths of sources are no part of a recipe, and other fields may only fit with them.
    return kind.model_construct(**{name: value for name, value in values.items() if name in kind.model_fields})


def _gold(task: Task | None, row: dict[str, Any]) -> list[str]:
    return [] if task is None else [piece for piece in task.gold(row) if piece and piece in row["prompt"]]
