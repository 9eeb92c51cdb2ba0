"""What a sweep is made of: artefacts, the jobs that make them, and the plan document that names them in the store."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from kvray.errors import InputError
from kvray.sweep.model import Finetune
from kvray.tasks.base import Task

Kind = Literal["writing", "dataset", "finetune", "predictions"]
Counted = Literal["rows", "sample", "estimate"]
FOLDERS: dict[Kind, str] = {
    "writing": "writings",
    "dataset": "datasets",
    "finetune": "finetunes",
    "predictions": "predictions",
}
"""Folder of the store per kind of artefact."""
NAME_LENGTH = 60
"""Characters of the readable part of an id."""
FORMAT = 1
"""Version of the plan document."""


def artefact_id(kind: Kind, name: str, digest: str) -> str:
    """Return ``<folder>/<name>-<16 digits of the fingerprint>``."""
    return f"{FOLDERS[kind]}/{name[:NAME_LENGTH].rstrip('-._')}-{digest[:16]}"


def read_document(data: bytes) -> PlanDocument:
    """Read what :meth:`Plan.to_json` wrote.

    Raises:
        InputError: it is no plan document, or one of a later version.
    """
    try:
        document = json.loads(data)
        if document["format"] != FORMAT:
            raise InputError(f"plan: found format {document['format']}; expected {FORMAT}: use the kvray that wrote it")
        planned = tuple(PlannedArtefact(**{**item, "needs": tuple(item["needs"])}) for item in document["artefacts"])
        return PlanDocument(document["name"], document["base_model"], document["sweep"], planned)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"plan: found no readable plan document ({error!r})") from error


@dataclass(frozen=True)
class WritingJob:
    """What a model is to write for a dataset.

    Attributes:
        task: whose :meth:`~kvray.tasks.base.Task.to_write` is answered.
        writer: the model, a name as for ``base_model``.
    """

    task: Task
    writer: str


@dataclass(frozen=True)
class FinetuneJob:
    """What the finetune stage needs beside the recipe.

    Attributes:
        finetune: the hyperparameters; its ``seeds`` are not this job's.
        seed: this finetune's seed.
        mixture: (dataset id, share) in the order of the recipe; shares sum to 1.
        budget: (dataset id, share) of the mixture whose tokens per epoch this one is matched to; empty for no cut.
    """

    finetune: Finetune
    seed: int
    mixture: tuple[tuple[str, float], ...]
    budget: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class PredictionsJob:
    """What the evaluate stage needs beside the recipe.

    Attributes:
        task: whose scorer scores.
        dataset_id: the examples; None where another library brings them (``Task.BRINGS_EXAMPLES``).
        finetune_id: the finetune that answers; None for the base model.
        evaluation: the evaluation's label.
        finetune: that finetune's hyperparameters; None for the base model.
    """

    task: Task
    dataset_id: str | None
    finetune_id: str | None
    evaluation: str
    finetune: Finetune | None = None


@dataclass(frozen=True)
class Artefact:
    """Something that must be in the store.

    Attributes:
        id: ``<folder>/<name>-<fingerprint[:16]>``.
        kind: writing, dataset, finetune or predictions.
        name: readable part of the id.
        fingerprint: sha256 of the recipe and of the fingerprints of what it needs.
        recipe: everything that decides its content.
        needs: ids of the artefacts it is made from, in the order of the recipe.
        rows: prompts of the writing, rows of the dataset, rows of one epoch of the finetune (about, if matched by
            tokens), or predictions.
        tokens: about how many tokens making it reads; 0 if unknown.
        counted: what rows and tokens rest on: every row of its data, a sample of them, or a rough size for want of the
            base model's tokenizer.
        labels: its names in the sweep: dataset and role; mixture, finetune and seed; evaluation with those three.
        params: WritingJob, Task, FinetuneJob or PredictionsJob.
    """

    id: str
    kind: Kind
    name: str
    fingerprint: str
    recipe: dict[str, Any]
    needs: tuple[str, ...]
    rows: int
    tokens: int
    labels: dict[str, Any]
    params: WritingJob | Task | FinetuneJob | PredictionsJob
    counted: Counted = "estimate"

    def identity(self) -> dict[str, Any]:
        """Return what a stage commits it under: the arguments of ``Store.commit`` that do not come from the work."""
        return {
            "id": self.id,
            "kind": self.kind,
            "name": self.name,
            "fingerprint": self.fingerprint,
            "recipe": self.recipe,
            "needs": self.needs,
        }


@dataclass(frozen=True)
class PlannedArtefact:
    """An artefact as the plan document has it; attributes as in :class:`Artefact`."""

    id: str
    kind: Kind
    name: str
    fingerprint: str
    needs: tuple[str, ...]
    rows: int
    tokens: int
    labels: dict[str, Any]


@dataclass(frozen=True)
class PlanDocument:
    """A plan as it is read from the store.

    Attributes:
        name: the sweep's name.
        base_model: as the user wrote it.
        sweep: the sweep in plain values, defaults and overrides included; ``Sweep.model_validate`` takes it.
        artefacts: in dependency order.
    """

    name: str
    base_model: str
    sweep: dict[str, Any]
    artefacts: tuple[PlannedArtefact, ...]
