"""One of two sweeps that are compared: its plan, its models by name, and the scores of its answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from kvray.results import frames
from kvray.results.profile import AXES
from kvray.results.reader import Results
from kvray.results.snapshot import look
from kvray.store.manifest import Manifest
from kvray.store.store import Store

NO_DATASET = ""
"""Stands for the dataset of an evaluation whose examples another library brings."""
_COLUMNS = ["evaluation", "task", "mixture", "finetune", "seed", "example_id", "question_id", "units", *AXES]
_COLUMNS += ["score", "outcome", "artefact"]
_MODEL = {"mixture": pl.String, "finetune": pl.String}


def read(store: Store, sweep: str) -> Side:
    """Read a sweep as it stands, without damaged predictions; InputError if the store has no such sweep."""
    standing = look(store, sweep)
    cells = [artefact for artefact in standing.document["artefacts"] if artefact["kind"] == "predictions"]
    labels = [{name: cell["labels"].get(name) for name in _MODEL} for cell in cells]
    # Named by the plan: by what is there, a sweep that is half done would call its models otherwise.
    named = frames.with_models(pl.DataFrame(labels, schema=_MODEL).unique(maintain_order=True))
    names = {(mixture, finetune): model for mixture, finetune, model in named.rows()}
    rows = Results(store).predictions(sweep, skip_damaged=True).select(_COLUMNS).collect()
    rows = rows.join(named, on=list(_MODEL), how="left", nulls_equal=True, maintain_order="left")
    committed = [cell["id"] for cell in cells if standing.states[cell["id"]] == "committed"]
    return Side(
        store=store,
        sweep=sweep,
        document=standing.document,
        states=standing.states,
        cells=[Cell(cell, names[cell["labels"].get("mixture"), cell["labels"].get("finetune")]) for cell in cells],
        manifests=store.read_manifests(committed),
        predictions=rows,
    )


@dataclass(frozen=True)
class Cell:
    """The planned predictions of one model, of one seed, on one evaluation."""

    artefact: Mapping[str, Any]
    model: str

    @property
    def id(self) -> str:
        return str(self.artefact["id"])

    @property
    def evaluation(self) -> str:
        return str(self.artefact["labels"]["evaluation"])

    @property
    def dataset(self) -> str:
        """Id of the dataset asked, or :data:`NO_DATASET`."""
        return next((need for need in self.artefact["needs"] if need.startswith("datasets/")), NO_DATASET)

    @property
    def finetune(self) -> str | None:
        """Id of the finetune asked; None for the base model."""
        return next((need for need in self.artefact["needs"] if need.startswith("finetunes/")), None)

    @property
    def label(self) -> str:
        """The finetune's label in the sweep: its method and what a grid varies."""
        return str(self.artefact["labels"].get("finetune") or "")


@dataclass(frozen=True)
class Side:
    """A sweep that is compared. ``predictions`` have a column ``model`` but no answers; manifests are the cells'."""

    store: Store
    sweep: str
    document: Mapping[str, Any]
    states: Mapping[str, str]
    cells: list[Cell]
    manifests: Mapping[str, Manifest]
    predictions: pl.DataFrame

    @property
    def base_model(self) -> str:
        return str(self.document.get("base_model") or "the base model")

    @property
    def models(self) -> list[str]:
        """The finetuned models that are planned, in the plan's order."""
        return [model for model in dict.fromkeys(cell.model for cell in self.cells) if model != frames.BASE]

    @property
    def evaluations(self) -> dict[str, str]:
        """The planned evaluations, each with the id of its dataset or :data:`NO_DATASET`."""
        return {cell.evaluation: cell.dataset for cell in self.cells}

    def of(self, model: str, evaluation: str | None = None) -> list[Cell]:
        """Return the cells of a model: all, or those of one evaluation, a cell per seed."""
        own = [cell for cell in self.cells if cell.model == model]
        return own if evaluation is None else [cell for cell in own if cell.evaluation == evaluation]

    def answered(self) -> tuple[int, int]:
        """Return how many cells are committed, and how many are planned."""
        return len(self.manifests), len(self.cells)

    def recipe(self, evaluation: str) -> Mapping[str, Any] | None:
        """Return the recipe of an evaluation's predictions, the base model's if it has any; None before the first."""
        own = [cell for cell in self.cells if cell.evaluation == evaluation and cell.id in self.manifests]
        own.sort(key=lambda cell: cell.model != frames.BASE)
        return self.manifests[own[0].id].recipe if own else None
