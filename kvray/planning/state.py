"""States of a plan's artefacts in a store, and the plans that a store keeps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kvray.errors import InputError
from kvray.planning.artefacts import Artefact, Plan, PlanDocument, PlannedArtefact, read_document
from kvray.store import failures
from kvray.store.store import Store

_LISTED = 6
"""Most names in a message."""
STAGE_NAMES = {"writing": "write", "dataset": "generate", "finetune": "finetune", "predictions": "evaluate"}


def status(planned: Sequence[Artefact | PlannedArtefact], store: Store, verify: bool = False) -> list[Status]:
    """Return the state of every artefact of a plan."""
    states = store.states([artefact.id for artefact in planned], verify)
    noted = failures.noted(store)
    found = []
    for artefact in planned:
        state, reason = str(states[artefact.id]), None
        if state != "committed" and artefact.id in noted:
            state, reason = "failed", failures.read(store, artefact.id)
        found.append(Status(artefact.id, artefact.kind, state, reason))
    return found


def stored_plan(name: str, store: Store) -> Sequence[PlannedArtefact]:
    """Return the artefacts of a sweep that was run into this store.

    Raises:
        InputError: the store has no such sweep; the message names those it has.
    """
    data = store.read_document(document_name(name))
    if data is None:
        known = sorted(each.rsplit("/", 1)[-1].removesuffix(".json") for each in store.documents("sweeps/"))
        raise InputError(
            f"sweep {name!r}: not in the store {store.uri}; it has {', '.join(known) if known else 'no sweeps'}. "
            "Give one of these, or the path of a YAML file"
        )
    return read_document(data).artefacts


def document_name(sweep: str) -> str:
    """Return the name of a sweep's plan in the store."""
    return f"sweeps/{sweep}.json"


def replaced(stored: PlanDocument, planned: Plan) -> str | None:
    """Return a message on what a new plan lacks of the stored one of its name; None if the sweep only grew."""
    new = {artefact.id for artefact in planned.artefacts}
    gone = [artefact for artefact in stored.artefacts if artefact.id not in new]
    if not gone:
        return None
    differ = []
    if stored.base_model != planned.base_model:
        differ.append(f"its base model is {stored.base_model}, now {planned.base_model}")
    for label, section in (("mixture", "mixtures"), ("evaluation", "evaluations")):
        lacking = [name for name in _names(gone, label) if name not in _names(planned.artefacts, label)]
        differ += [f"its {section} {_listed(lacking)} are not in this one"] if lacking else []
    if not differ:
        differ.append("the names are the same, the recipes are not (kvray why says what differs)")
    return (
        f"the sweep {stored.name!r} in the store has {len(gone)} artefacts of {len(stored.artefacts)} that this one "
        f"has not: {'; '.join(differ)}. Its plan and its report are replaced, its artefacts stay; to keep both sweeps, "
        "give this one another name (name: in the file, or --set name=NAME)"
    )


def _names(artefacts: Iterable[Artefact | PlannedArtefact], label: str) -> list[str]:
    names = (artefact.labels.get(label) for artefact in artefacts)
    return list(dict.fromkeys(name for name in names if name is not None))


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


@dataclass(frozen=True)
class Status:
    """State of one artefact: committed, missing, damaged or failed (with ``reason``)."""

    id: str
    kind: str
    state: str
    reason: str | None = None
