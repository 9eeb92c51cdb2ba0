"""The state of a sweep at one moment: plan, manifests, failures, predictions, comparisons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from kvray.errors import DamagedArtefactError
from kvray.results import comparisons, frames, losses, profile, references
from kvray.results.axes import OVERALL
from kvray.results.profile import Profile
from kvray.results.reader import Results
from kvray.store import failures
from kvray.store.manifest import Manifest
from kvray.store.store import Store
from kvray.tasks.base import Measure


def collect(store: Store, sweep: str) -> Snapshot:
    """Read a sweep's plan and its committed artefacts, and compare the models; damaged predictions are left out.

    Raises:
        InputError: the store has no such sweep.
    """
    progress = look(store, sweep)
    predictions = frames.with_models(Results(store).predictions(sweep, skip_damaged=True).collect())
    cells = [cell for cell in progress.planned("predictions") if cell["id"] in progress.manifests]
    declared = {cell["labels"]["evaluation"]: progress.manifests[cell["id"]].measurements for cell in cells}
    profiles = profile.profiles(predictions, declared)
    compared = comparisons.compare_all(predictions, profiles)
    published, unknown_sets = references.of_sweep(progress.document)
    finetunes = progress.planned("finetune")
    return Snapshot(
        **vars(progress),
        store=store,
        sweep=sweep,
        predictions=predictions,
        comparisons=compared,
        scores=comparisons.scores(predictions, compared, profiles),
        names=losses.names(finetunes, predictions),
        losses=losses.read(store, finetunes, progress.manifests, predictions),
        published=published,
        unknown_sets=unknown_sets,
        profiles=profiles,
        models=frames.models(predictions),
    )


def look(store: Store, sweep: str) -> Progress:
    """Read a sweep's plan, states, manifests and failures, but not its predictions.

    Raises:
        InputError: the store has no such sweep.
    """
    document = Results(store).document(sweep)
    states: dict[str, str] = dict(store.states([artefact["id"] for artefact in document["artefacts"]]))
    read = {one: _manifest(store, one) for one, state in states.items() if state == "committed"}
    manifests = {one: manifest for one, manifest in read.items() if manifest is not None}
    noted = failures.noted(store)
    reasons = {one: _failure(store, one) for one in states if one not in manifests and one in noted}
    return Progress(document, states | dict.fromkeys(reasons, "failed"), manifests, reasons)


def _manifest(store: Store, artefact_id: str) -> Manifest | None:
    try:
        return store.manifest(artefact_id)
    except DamagedArtefactError:
        return None


def _failure(store: Store, artefact_id: str) -> str:
    """Return the error of an artefact's last attempt, in one line."""
    return " ".join((failures.read(store, artefact_id) or "").split())[:400] or "failed without a message"


@dataclass(frozen=True)
class Progress:
    """A sweep's plan document, and by artefact id: states, manifests where committed, errors where failed.

    States are committed, missing, damaged or failed.
    """

    document: Mapping[str, Any]
    states: Mapping[str, str]
    manifests: Mapping[str, Manifest]
    failures: Mapping[str, str]

    def planned(self, kind: str) -> list[dict[str, Any]]:
        """Return the plan's artefacts of a kind."""
        return [artefact for artefact in self.document["artefacts"] if artefact["kind"] == kind]

    def evaluated(self) -> tuple[int, int]:
        """Return how many predictions are committed, and how many are planned."""
        cells = self.planned("predictions")
        return sum(cell["id"] in self.manifests for cell in cells), len(cells)


@dataclass(frozen=True)
class Snapshot(Progress):
    """What a report is made from; :func:`collect` shows which function documents the columns of each table.

    Attributes:
        names: finetuned models, with or without predictions, by (mixture, finetune).
        unknown_sets: names under ``reference`` that are no set.
        profiles: by name of the evaluations that have predictions, in the plan's order.
        models: finetuned models that have predictions, in the plan's order.
    """

    store: Store
    sweep: str
    predictions: pl.DataFrame
    comparisons: pl.DataFrame
    scores: pl.DataFrame
    names: Mapping[tuple[Any, Any], str]
    losses: pl.DataFrame
    published: pl.DataFrame
    unknown_sets: list[str]
    profiles: Mapping[str, Profile]
    models: list[str]

    def of(self, evaluation: str) -> pl.DataFrame:
        """Return the predictions of an evaluation."""
        return self.predictions.filter(pl.col("evaluation") == evaluation)

    def against_base(self) -> pl.DataFrame:
        """Return the comparisons with the base over whole evaluations that have pairs."""
        return self.comparisons.filter((pl.col("family") == OVERALL) & pl.col("difference").is_not_null())

    def measuring(self, measure: Measure) -> list[str]:
        """Return the evaluations with predictions that measure this, in the plan's order."""
        return [name for name, each in self.profiles.items() if each.measures == measure]

    def cell(self, artefact: Mapping[str, Any]) -> str:
        """Return an artefact's name in the sweep's words: "ours, seed 0 on mdqa"."""
        labels = artefact["labels"]
        if artefact["kind"] == "writing":
            return f"text written for {labels.get('dataset')}"
        if artefact["kind"] == "dataset":
            return f"{labels.get('dataset')} ({labels.get('role', 'dataset')})"
        model = frames.BASE
        if labels.get("mixture") is not None:
            model = f"{self.names[labels['mixture'], labels.get('finetune')]}, seed {labels.get('seed')}"
        return model if artefact["kind"] == "finetune" else f"{model} on {labels.get('evaluation')}"
