"""States of a plan's artefacts in a store, and the plans that a store keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvray.console import say
from kvray.errors import StoreError
from kvray.planning.artefacts import Plan, PlannedArtefact, described
from kvray.store import failures
from kvray.store.store import Store

_LISTED = 6  # most names in a message
STAGE_NAMES = {"writing": "write", "dataset": "generate", "finetune": "finetune", "predictions": "evaluate"}


def status(planned: Sequence[PlannedArtefact], store: Store, verify: bool = False) -> list[Status]:
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


def tell_replaced(planned: Plan, store: Store) -> None:
    """Print a notice if the plan replaces a stored one of the same name that has artefacts beyond it."""
    name = planned.sweep.name
    if name not in store.sweeps():
        return
    try:
        stored = store.plan_document(name)
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
class Status:
    """State of one artefact: committed, missing, damaged or failed (with ``reason``)."""

    id: str
    kind: str
    state: str
    reason: str | None = None
