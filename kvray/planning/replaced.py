"""What a sweep's plan takes the place of in the store: an older plan of the same name, of this sweep or of another."""

from __future__ import annotations

from collections.abc import Iterable

from kvray.planning.artefacts import Artefact, PlanDocument, PlannedArtefact
from kvray.planning.plan import Plan

_LISTED = 6
"""Names that are listed at most."""
_SECTIONS = {"mixture": "mixtures", "evaluation": "evaluations"}


def replaced(stored: PlanDocument, planned: Plan) -> str | None:
    """Say what of a stored plan the new one of its name has not; None where it has all of it.

    A sweep that grew has all of the old one. One that has not is another sweep, or the same after an edit: either way
    the store's plan and report of that name no longer show what is said here.
    """
    new = {artefact.id for artefact in planned.artefacts}
    gone = [artefact for artefact in stored.artefacts if artefact.id not in new]
    if not gone:
        return None
    differ = []
    if stored.base_model != planned.base_model:
        differ.append(f"its base model is {stored.base_model}, now {planned.base_model}")
    for label, section in _SECTIONS.items():
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
