"""The artefacts of a sweep, the jobs that make them, their states in a store, and the plan document there."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from kvray.console import say
from kvray.errors import InputError, StoreError
from kvray.models.reference import API, BaseModelRef
from kvray.store import failures
from kvray.store.root import PLAN_FORMAT
from kvray.store.store import Store
from kvray.sweep.model import Finetune, Sweep
from kvray.tasks.base import Task
from kvray.tasks.code import carried

Kind = Literal["writing", "dataset", "finetune", "predictions"]
Counted = Literal["rows", "sample", "estimate"]
KINDS: tuple[Kind, ...] = ("writing", "dataset", "finetune", "predictions")  # each needs only those of earlier kinds


_LISTED = 6  # most names in a message
STAGE_NAMES = {"writing": "write", "dataset": "generate", "finetune": "finetune", "predictions": "evaluate"}


def described(document: Mapping[str, Any]) -> list[PlannedArtefact]:
    """Return the artefacts of a plan document (:meth:`kvray.store.root.Root.plan_document`)."""
    return [PlannedArtefact(**{**item, "needs": tuple(item["needs"])}) for item in document["artefacts"]]


def status(planned: Sequence[PlannedArtefact], store: Store, verify: bool = False) -> list[Status]:
    """Return the state of every artefact of a plan."""
    states = store.states([artefact.id for artefact in planned], verify)
    noted = failures.noted(store)
    failed = [one for one, state in states.items() if state != "committed" and one in noted]
    reasons = failures.reasons(store, failed)
    return [
        Status(each.id, each.kind, "failed" if each.id in reasons else str(states[each.id]), reasons.get(each.id))
        for each in planned
    ]


def keep(planned: Plan, store: Store) -> dict[str, Any]:
    """Write the plan document, after the notice of :func:`tell_replaced`, and return it; one there is left alone."""
    name, data = f"sweeps/{planned.sweep.name}.json", planned.to_json()
    if store.read_document(name) != data:
        tell_replaced(planned, store)
        store.write_document(name, data)
    return dict(json.loads(data))


def tell_replaced(planned: Plan, store: Store) -> None:
    """Print a notice if the plan replaces a stored one of the same name that has artefacts beyond it."""
    name = planned.sweep.name
    try:
        stored = store.plan_document(name)
    except InputError:  # there is none
        return
    except StoreError as error:
        say(f"kvray: the stored plan cannot be read ({error}) and is replaced")
        return
    new = {artefact.id for artefact in planned.artefacts}
    gone = [artefact for artefact in described(stored) if artefact.id not in new]
    if not gone:
        return
    differ = []
    if stored["base_model"] != planned.base_model:
        differ.append(f"its base model is {stored['base_model']}, now {planned.base_model}")
    for label in ("mixture", "evaluation"):
        names = {artefact.labels.get(label) for artefact in planned.artefacts}
        lacking = list(dict.fromkeys(str(a.labels[label]) for a in gone if a.labels.get(label) not in (None, *names)))
        if lacking:
            more = f" and {len(lacking) - _LISTED} more" if len(lacking) > _LISTED else ""
            differ.append(f"its {label}s {', '.join(lacking[:_LISTED])}{more} are not in this one")
    if not differ:
        differ.append("the names are the same, the recipes are not (kvray why says what differs)")
    say(
        f"kvray: the sweep {name!r} in the store has {len(gone)} artefacts of {len(stored['artefacts'])} that "
        f"this one has not: {'; '.join(differ)}. Its plan and its report are replaced, its artefacts stay; to keep "
        "both sweeps, give this one another name (name: in the file, or --set name=NAME)"
    )


@dataclass(frozen=True)
class WritingJob:
    """The task whose prompts (:meth:`~kvray.tasks.base.Task.to_write`) a model answers, and that model's name."""

    task: Task
    writer: str


@dataclass(frozen=True)
class FinetuneJob:
    """What the finetune stage needs beside the recipe."""

    finetune: Finetune  # the hyperparameters; ``seed`` stands in for its ``seeds``
    seed: int
    mixture: tuple[tuple[str, float], ...]  # (dataset id, share) in the order of the recipe; shares sum to 1
    budget: tuple[tuple[str, float], ...] = ()  # likewise, of the mixture to whose tokens per epoch this is cut


@dataclass(frozen=True)
class PredictionsJob:
    """What the evaluate stage needs beside the recipe."""

    task: Task
    dataset_id: str | None  # None: another library brings the examples (``Task.BRINGS_EXAMPLES``)
    finetune_id: str | None  # None: the base model answers
    finetune: Finetune | None = None


@dataclass(frozen=True)
class PlannedArtefact:
    """Something that must be in the store, as a plan document describes it."""

    id: str  # ``<folder>/<name>-<fingerprint[:16]>``
    kind: Kind
    name: str  # readable part of the id
    fingerprint: str  # sha256 of the recipe and of the fingerprints of what it needs
    needs: tuple[str, ...]  # ids of the artefacts it is made from, in the order of the recipe
    rows: int  # prompts, rows or predictions; of a finetune, rows of one epoch (about, if matched by tokens)
    tokens: int  # about how many tokens making it reads; 0 if unknown
    labels: dict[str, Any]  # names: dataset and role; mixture, finetune and seed; evaluation with those three


@dataclass(frozen=True)
class Artefact(PlannedArtefact):
    """Something that must be in the store, and how it is made."""

    recipe: dict[str, Any]  # everything that decides its content
    params: WritingJob | Task | FinetuneJob | PredictionsJob
    counted: Counted = "estimate"  # basis of rows and tokens: all rows, a sample, or an estimate without the tokenizer

    def identity(self) -> dict[str, Any]:
        """Return the arguments of ``Store.commit`` that are known before the artefact is made."""
        return {name: getattr(self, name) for name in ("id", "kind", "name", "fingerprint", "recipe", "needs")}


def asks_api(artefact: PlannedArtefact, base: BaseModelRef) -> bool:
    """Return whether an API makes an artefact of a plan for this base model."""
    if isinstance(artefact, Artefact) and isinstance(artefact.params, WritingJob):
        return artefact.params.writer.startswith(API)
    return base.api and artefact.kind != "dataset"


@dataclass(frozen=True)
class Plan:
    """All artefacts of a sweep in dependency order: writings, datasets, finetunes, predictions."""

    sweep: Sweep
    base_model: str
    artefacts: tuple[Artefact, ...]  # each once, though several variants may share it
    notes: tuple[str, ...] = ()  # what did not answer and was assumed (``inputs.gather``); such a plan cannot be run
    warnings: tuple[str, ...] = ()  # likely mistakes that do not prevent a run
    sizes: Mapping[str, int] = field(default_factory=dict)  # rows of datasets that ``sweep`` got for their mixtures

    def code(self) -> dict[str, str]:
        """Return the sha256, by path, of each Python file outside any package that defines a task."""
        tasks = [*self.sweep.datasets.values(), *self.sweep.evaluate.values()]
        sources = [source for task in tasks if (source := carried(task))]
        return {source.path: source.sha256 for source in sources}

    def to_json(self) -> bytes:
        """Return the plan document, ``sweeps/<name>.json`` in the store: UTF-8 JSON, byte for byte reproducible."""
        keys = [each.name for each in fields(PlannedArtefact)]
        head = {
            "format": PLAN_FORMAT,
            "name": self.sweep.name,
            "base_model": self.base_model,
            "sweep": self.sweep.model_dump(mode="json"),
            "artefacts": [],
        }
        # A line for each: json writes indented text in Python, and this in C.
        rows = (json.dumps({key: getattr(each, key) for key in keys}, ensure_ascii=False) for each in self.artefacts)
        text = json.dumps(head, indent=1, ensure_ascii=False).removesuffix("[]\n}")
        return (text + "[\n  " + ",\n  ".join(rows) + "\n ]\n}\n").encode()


@dataclass(frozen=True)
class Status:
    """State of one artefact: committed, missing, damaged or failed (with ``reason``)."""

    id: str
    kind: str
    state: str
    reason: str | None = None
