"""The state of a sweep at one moment: plan, manifests, failures, predictions, comparisons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from kvray.results import comparisons, frames, losses, profile, references
from kvray.results.profile import OVERALL, Profile
from kvray.results.reader import Results
from kvray.store import failures
from kvray.store.manifest import Manifest, Presence
from kvray.store.store import Store
from kvray.tasks.base import Measure


def collect(store: Store, sweep: str) -> Snapshot:
    """Read a sweep and compare its models, without damaged predictions; InputError if there is no such sweep."""
    standing = look(store, sweep)
    progress = Progress(**vars(standing), manifests=store.read_manifests(list(standing.times)))
    predictions = frames.with_models(Results(store).predictions(sweep, skip_damaged=True).collect())
    answered = progress.committed("predictions")
    declared = {cell["labels"]["evaluation"]: manifest.measurements for cell, manifest in answered}
    profiles = profile.profiles(predictions, declared)
    compared = comparisons.compare_all(predictions, profiles)
    published, unknown_sets = references.of_sweep(progress.document)
    models = frames.models(predictions)
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
        published=references.beside(published, predictions, models),
        unknown_sets=unknown_sets,
        profiles=profiles,
        models=models,
    )


def look(store: Store, sweep: str, found: tuple[Mapping[str, Any], Mapping[str, Presence]] | None = None) -> Standing:
    """Read the plan, list states and read failures, but neither manifests nor predictions.

    ``found`` is the plan's document and the store's listing of its artefacts, if known. Raises InputError if there is
    no such sweep.
    """
    if found is None:
        planned = Results(store).document(sweep)
        found = planned, store.listing([artefact["id"] for artefact in planned["artefacts"]])
    document, listing = found
    states: dict[str, str] = {one: presence.state for one, presence in listing.items()}
    times = {one: presence.committed_ns for one, presence in listing.items() if presence.state == "committed"}
    noted = failures.noted(store) if len(times) < len(states) else set()
    errors = failures.reasons(store, [one for one in states if one in noted and one not in times])
    reasons = {one: " ".join(error.split())[:400] or "failed without a message" for one, error in errors.items()}
    return Standing(document, states | dict.fromkeys(reasons, "failed"), times, reasons)


@dataclass(frozen=True)
class Standing:
    """A sweep's plan and, by artefact, states (committed, missing, damaged, failed) and errors if failed."""

    document: Mapping[str, Any]
    states: Mapping[str, str]
    times: Mapping[str, int | None]  # of the commits, in ns, as a listing shows them
    failures: Mapping[str, str]


@dataclass(frozen=True)
class Progress(Standing):
    """A sweep's plan and states, with the manifests of what is committed."""

    manifests: Mapping[str, Manifest]

    def planned(self, kind: str) -> list[dict[str, Any]]:
        return [artefact for artefact in self.document["artefacts"] if artefact["kind"] == kind]

    def committed(self, kind: str) -> list[tuple[dict[str, Any], Manifest]]:
        return [(each, self.manifests[each["id"]]) for each in self.planned(kind) if each["id"] in self.manifests]

    def evaluated(self) -> tuple[int, int]:
        """Return how many predictions are committed, and how many are planned."""
        return len(self.committed("predictions")), len(self.planned("predictions"))


@dataclass(frozen=True)
class Snapshot(Progress):
    """What a report is made from; :func:`collect` shows which function documents the columns of each table.

    ``names`` are all finetuned models, by (mixture, finetune). ``models`` are those that have predictions, ``profiles``
    the evaluations that have, both in the plan's order. ``unknown_sets`` are names under ``reference`` of no set.
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

    @property
    def with_base(self) -> list[str]:
        """The base model, then :attr:`models`."""
        return [frames.BASE, *self.models]

    def compared(self, measure: Measure) -> list[str]:
        """Return the evaluations that measure this and in which a model was compared with the base."""
        compared = set(self.against_base()["evaluation"])
        return [name for name in self.measuring(measure) if name in compared]

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
