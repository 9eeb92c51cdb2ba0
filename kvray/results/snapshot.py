"""Everything that a report speaks of, read once from the store: plan, states, manifests, failures, predictions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from kvray.errors import DamagedArtefactError
from kvray.results import comparisons as family
from kvray.results import frames, losses, profile, references
from kvray.results.profile import Kind, Measure
from kvray.results.reader import Results
from kvray.store import failures
from kvray.store.manifest import Manifest
from kvray.store.store import Store


def collect(store: Store, sweep: str) -> Found:
    """Read a sweep's plan and all of it that is committed, and compare the models.

    Damaged artefacts are left out here and listed with what is missing: a report shows what there is.

    Raises:
        InputError: the store knows no such sweep.
    """
    results = Results(store)
    there = look(store, sweep)
    document, manifests = there.document, there.manifests
    predictions = frames.with_models(results.predictions(sweep, skip_damaged=True).collect())
    told = profile.kinds(predictions)
    comparisons = family.family(predictions, told)
    published, unknown = references.of_sweep(document)
    tuned = [artefact for artefact in document["artefacts"] if artefact["kind"] == "finetune"]
    return Found(
        store=store,
        sweep=sweep,
        document=document,
        states=there.states,
        manifests=manifests,
        failures=there.failures,
        predictions=predictions,
        comparisons=comparisons,
        scores=family.scores(predictions, comparisons, told),
        names=losses.names(tuned, predictions),
        losses=losses.read(store, tuned, manifests, predictions),
        published=published,
        unknown_sets=unknown,
        kinds=told,
        models=frames.models(predictions),
    )


def look(store: Store, sweep: str) -> There:
    """Read a sweep's plan and what the store has of it, without the predictions.

    Raises:
        InputError: the store knows no such sweep.
    """
    document = Results(store).document(sweep)
    states: dict[str, str] = dict(store.states([artefact["id"] for artefact in document["artefacts"]]))
    manifests = {}
    for one, state in states.items():
        if state == "committed" and (manifest := _manifest(store, one)) is not None:
            manifests[one] = manifest
    noted = failures.noted(store)
    reasons = {one: _failure(store, one) for one in states if one not in manifests and one in noted}
    shown = {one: "failed" if one in reasons else state for one, state in states.items()}
    return There(document, shown, manifests, reasons)


def cell_name(artefact: Mapping[str, Any], names: Mapping[tuple[Any, Any], str]) -> str:
    """Return what a planned artefact is, in the sweep's names: "ours, seed 0 on mdqa".

    Args:
        artefact: of the plan.
        names: of the finetuned models, :attr:`Found.names`.
    """
    labels = artefact["labels"]
    if artefact["kind"] == "writing":
        return f"text written for {labels.get('dataset')}"
    if artefact["kind"] == "dataset":
        return f"{labels.get('dataset')} ({labels.get('role', 'dataset')})"
    model = frames.BASE
    if labels.get("mixture") is not None:
        model = f"{names[labels['mixture'], labels.get('finetune')]}, seed {labels.get('seed')}"
    return model if artefact["kind"] == "finetune" else f"{model} on {labels.get('evaluation')}"


def _manifest(store: Store, artefact_id: str) -> Manifest | None:
    try:
        return store.manifest(artefact_id)
    except DamagedArtefactError:
        return None


def _failure(store: Store, artefact_id: str) -> str:
    """Return why an artefact failed when it was last tried, in one line."""
    return " ".join((failures.read(store, artefact_id) or "").split())[:400] or "failed without a message"


@dataclass(frozen=True)
class There:
    """What the store has of a sweep; attributes as in :class:`Found`."""

    document: Mapping[str, Any]
    states: Mapping[str, str]
    manifests: Mapping[str, Manifest]
    failures: Mapping[str, str]


@dataclass(frozen=True)
class Found(There):
    """What there is of a sweep.

    Attributes:
        store: where it was read.
        sweep: the sweep's name.
        document: its plan document.
        states: committed, missing, damaged or failed, per artefact id of the plan.
        manifests: of the committed artefacts, by id.
        failures: why, by id, of those that failed when last tried.
        predictions: all rows, with the column ``model``.
        comparisons: :func:`kvray.results.comparisons.family`.
        scores: :func:`kvray.results.comparisons.scores`.
        names: of the finetuned models, those of :attr:`predictions` among them, by (mixture, finetune).
        losses: of the finetunes, :func:`kvray.results.losses.read`.
        published: numbers of the sets that the sweep names, of :func:`kvray.results.references.of_sweep`.
        unknown_sets: names under ``reference`` that are no set.
        kinds: what each evaluation that has predictions measures.
        models: the finetuned models that have predictions, in the plan's order.
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
    kinds: Mapping[str, Kind]
    models: list[str]

    def planned(self, kind: str) -> list[dict[str, Any]]:
        """Return the plan's artefacts of a kind, in its order."""
        return [artefact for artefact in self.document["artefacts"] if artefact["kind"] == kind]

    def measuring(self, *measures: Measure) -> list[str]:
        """Return the evaluations that measure one of these and have predictions, in the plan's order."""
        return [evaluation for evaluation, kind in self.kinds.items() if kind.measures in measures]
