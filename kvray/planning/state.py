"""States of a plan's artefacts in a store, and the plans that a store keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvray.planning.artefacts import Artefact, Plan, PlannedArtefact, described
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


def replaced(stored: Mapping[str, Any], planned: Plan) -> str | None:
    """Return a message on what a new plan lacks of the stored one of its name; None if the sweep only grew."""
    new = {artefact.id for artefact in planned.artefacts}
    gone = [artefact for artefact in described(stored) if artefact.id not in new]
    if not gone:
        return None
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
    return (
        f"the sweep {planned.sweep.name!r} in the store has {len(gone)} artefacts of {len(stored['artefacts'])} that "
        f"this one has not: {'; '.join(differ)}. Its plan and its report are replaced, its artefacts stay; to keep "
        "both sweeps, give this one another name (name: in the file, or --set name=NAME)"
    )


@dataclass(frozen=True)
class Status:
    """State of one artefact: committed, missing, damaged or failed (with ``reason``)."""

    id: str
    kind: str
    state: str
    reason: str | None = None
