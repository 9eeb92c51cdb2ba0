"""Which evaluations two sweeps share: the very examples, not only the name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from kvray.errors import DamagedArtefactError, StoreError
from kvray.results.across.side import NO_DATASET, Side
from kvray.store.store import Store

_ASKED = ("example_id", "question_id", "prompt", "references", "history", "answer_prefix")
"""Columns of a dataset that decide what a model is asked, and what counts as right."""
_BROUGHT = ("task", "sources", "tokenizer")
"""Parts of the recipe of predictions that decide the examples of another library."""


@dataclass(frozen=True)
class Shared:
    """An evaluation of both sweeps, by its names in either; ``examples`` are the ids they share, None if all."""

    first: str
    second: str
    examples: tuple[str, ...] | None = None
    asked: int = 0  # examples of the larger side, where only some are shared

    @property
    def note(self) -> str:
        """What to know of the pairing; "" if both have the same dataset under the same name."""
        notes = [] if self.first == self.second else [f"called {self.second} in the second sweep"]
        if self.examples is not None:
            notes.append(f"the datasets differ; {len(self.examples):,} of {self.asked:,} examples are the same in both")
        return "; ".join(notes)


@dataclass(frozen=True)
class Apart:
    """Something that cannot be compared, and why."""

    what: str
    why: str


def match(first: Side, second: Side) -> tuple[list[Shared], list[Apart]]:
    """Return the evaluations that two sweeps share, in the first one's order, and those that they do not.

    The same dataset is the same evaluation, whatever its name. Evaluations of one name but different datasets share the
    examples whose id, prompt and accepted answers are equal in both.
    """
    ours, theirs = first.evaluations, second.evaluations
    shared, apart = [], []
    left = dict(theirs)
    for name, dataset in ours.items():
        same = [other for other in left if dataset != NO_DATASET and left[other] == dataset]
        other = name if name in same or not same else same[0]
        if other not in left:
            apart.append(Apart(name, "only in the first sweep"))
            continue
        found = _pair(first, second, name, other)
        shared += [found] if isinstance(found, Shared) else []
        apart += [found] if isinstance(found, Apart) else []
        del left[other]
    return shared, apart + [Apart(name, "only in the second sweep") for name in left]


def _pair(first: Side, second: Side, name: str, other: str) -> Shared | Apart:
    recipes = first.recipe(name), second.recipe(other)
    if recipes[0] is None or recipes[1] is None:
        lacking = "either" if recipes[0] is recipes[1] else "the first" if recipes[0] is None else "the second"
        return Apart(name, f"no predictions in {lacking} sweep yet")
    one, two = recipes[0], recipes[1]
    if one.get("scorer") != two.get("scorer"):
        return Apart(name, f"scored by different rules: {_scorer(one)} and {_scorer(two)}")
    datasets = first.evaluations[name], second.evaluations[other]
    if datasets[0] == datasets[1] != NO_DATASET:
        return Shared(name, other)
    if NO_DATASET not in datasets:
        return _same_rows(first.store, second.store, name, other, datasets)
    if datasets[0] == datasets[1] and all(one.get(part) == two.get(part) for part in _BROUGHT) and _same_text(one, two):
        return Shared(name, other)
    return Apart(name, "different examples: the settings of the benchmark or its files differ")


def _same_text(one: Mapping[str, Any], two: Mapping[str, Any]) -> bool:
    """Return whether a benchmark asks both models the same: one that makes its prompts measures them by the model."""
    made = (one.get("task") or {}).get("metadata") is not None
    return not made or one.get("base") == two.get("base")


def _same_rows(first: Store, second: Store, name: str, other: str, datasets: tuple[str, str]) -> Shared | Apart:
    try:
        ours, theirs = _rows(first, datasets[0]), _rows(second, datasets[1])
    except (StoreError, DamagedArtefactError) as error:
        return Apart(name, f"different datasets, which cannot be read to see what they share: {error}")
    both = ours.join(theirs, on=list(_ASKED), nulls_equal=True, how="semi")
    if not both.height:
        return Apart(name, "different datasets: no example has the same id, prompt and accepted answers in both")
    whole = both.height == ours.height == theirs.height
    return Shared(name, other, None if whole else tuple(both["example_id"]), max(ours.height, theirs.height))


def _rows(store: Store, dataset: str) -> pl.DataFrame:
    frame = pl.from_arrow(store.read_table(dataset))
    assert isinstance(frame, pl.DataFrame)
    if lacking := [name for name in _ASKED[:4] if name not in frame.columns]:
        raise StoreError(f"{dataset} has no column {', '.join(lacking)}")
    absent = [pl.lit(None, dtype=pl.String).alias(name) for name in _ASKED if name not in frame.columns]
    return frame.with_columns(absent).select(_ASKED).with_columns(pl.col("references").list.join("\x1f"))


def _scorer(recipe: Mapping[str, Any]) -> str:
    scorer = recipe.get("scorer") or {}
    return f"{scorer.get('task')}, version {scorer.get('law')}"
