"""The state of a plan's artefacts in a store, and the plans and failures that a store keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvray.errors import InputError
from kvray.planning.artefacts import Artefact, PlannedArtefact, read_document
from kvray.store import failures
from kvray.store.store import Store

STAGE_NAMES = {"writing": "write", "dataset": "generate", "finetune": "finetune", "predictions": "evaluate"}


def status(planned: Sequence[Artefact | PlannedArtefact], store: Store, verify: bool = False) -> list[Status]:
    """Return the state of every artefact of a plan: committed, missing, damaged or failed (with the reason)."""
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
        InputError: no sweep of that name was; names those that were.
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
    """Return where the store keeps a sweep's plan."""
    return f"sweeps/{sweep}.json"


@dataclass(frozen=True)
class Status:
    """State of one artefact: committed, missing, damaged or failed; ``reason`` for the last."""

    id: str
    kind: str
    state: str
    reason: str | None = None
