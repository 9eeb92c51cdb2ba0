"""What a sweep is made of: artefacts, the jobs that make them, and the plan document that names them in the store."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import Any, Literal

from kvray.errors import InputError
from kvray.sweep.model import Finetune, Sweep
from kvray.tasks.base import Task
from kvray.tasks.code import carried

Kind = Literal["writing", "dataset", "finetune", "predictions"]
Counted = Literal["rows", "sample", "estimate"]
KINDS: tuple[Kind, ...] = ("writing", "dataset", "finetune", "predictions")
"""Kinds of artefacts; each needs artefacts of the kinds before it alone."""
FORMAT = 1
"""Version of the plan document."""


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
        task: its :meth:`~kvray.tasks.base.Task.to_write` gives the prompts.
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
        task: its scorer scores the answers.
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
    """Something that must be in the store, and how it is made.

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
class Plan:
    """All artefacts of a sweep in dependency order: writings, datasets, finetunes, predictions.

    Attributes:
        sweep: what was planned.
        base_model: the base model's name.
        artefacts: each once, though several variants may share it.
        notes: what could not be looked at and was assumed (:func:`kvray.planning.inputs.gather`); such a plan cannot be
            run.
        warnings: what can be run and is likely to be a mistake.
    """

    sweep: Sweep
    base_model: str
    artefacts: tuple[Artefact, ...]
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def code(self) -> dict[str, str]:
        """Return the sha256 of each Python file outside any package that tasks are from, by its path."""
        tasks = [*self.sweep.datasets.values(), *self.sweep.evaluate.values()]
        sources = [source for task in tasks if (source := carried(task))]
        return {source.path: source.sha256 for source in sources}

    def document(self) -> dict[str, Any]:
        """Return the plan in plain values, for ``sweeps/<name>.json`` in the store."""
        keys = [field.name for field in fields(PlannedArtefact)]
        return {
            "format": FORMAT,
            "name": self.sweep.name,
            "base_model": self.base_model,
            "sweep": self.sweep.model_dump(mode="json"),
            "artefacts": [
                {key: list(artefact.needs) if key == "needs" else getattr(artefact, key) for key in keys}
                for artefact in self.artefacts
            ],
        }

    def to_json(self) -> bytes:
        """Return :meth:`document` as UTF-8 JSON, the same bytes for the same plan."""
        return (json.dumps(self.document(), indent=1, ensure_ascii=False) + "\n").encode()


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
