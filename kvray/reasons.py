"""Why an artefact is to be made: its state, and what of its recipe differs from the nearest one in the store."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kvray.artefact import Artefact, PlannedArtefact, read_document
from kvray.errors import DamagedArtefactError, InputError
from kvray.facts import gather
from kvray.fingerprint import recipe_diff
from kvray.manifest import Manifest
from kvray.plan import plan
from kvray.problems import nearest
from kvray.run import status
from kvray.spec import Sweep
from kvray.store import Store

_SHOWN = 10
Known = Artefact | PlannedArtefact


def why(cell: str, store: Store, planned: Sequence[Artefact] | None = None) -> list[str]:
    """Explain one artefact.

    Args:
        cell: its id, or a part of an id that fits one artefact alone.
        store: where it is, or will be.
        planned: where to look it up; None looks through the sweeps that were run into the store.

    Returns:
        Lines for a terminal.

    Raises:
        InputError: no artefact fits, or several do; the message lists the nearest.
    """
    known: dict[str, Known] = {}
    for artefact in planned if planned is not None else _stored(store):
        known.setdefault(artefact.id, artefact)
    found = find(cell, known)
    if planned is None:
        known |= _replanned(found.id, store)
    explanation = _Explanation(store, known, store.manifests())
    return list(explanation.of(found.id, ""))


def find(cell: str, known: dict[str, Known]) -> Known:
    """Return the one artefact that a name stands for: its id, else how its name starts, a part of its id, a label.

    Raises:
        InputError: none or several fit.
    """
    if cell in known:
        return known[cell]
    starts = [key for key in known if key.partition("/")[2].startswith(cell) or key.startswith(cell)]
    fits = starts or [key for key in known if cell in key]
    fits = fits or [key for key, artefact in known.items() if cell in artefact.labels.values()]
    if len(fits) == 1:
        return known[fits[0]]
    if fits:
        shown = "\n".join(f"  {key}  {_labels(known[key])}" for key in fits[:_SHOWN])
        more = f"\n  … and {len(fits) - _SHOWN} more" if len(fits) > _SHOWN else ""
        raise InputError(f"{cell!r} fits {len(fits)} artefacts; expected a part of one id alone:\n{shown}{more}")
    near = nearest(cell.rpartition("/")[2], [key.partition("/")[2] for key in known])
    names = [key for key in known if near is not None and key.endswith(f"/{near}")] or list(known)[:_SHOWN]
    listed = "\n".join(f"  {key}" for key in names) or "  none: no sweep was run into this store; give --sweep FILE"
    raise InputError(f"{cell!r} is no artefact of the plan; {'did you mean' if near else 'it has'}:\n{listed}")


def _labels(artefact: Known) -> str:
    return ", ".join(f"{key} {value}" for key, value in artefact.labels.items() if value is not None)


def _stored(store: Store) -> Iterator[PlannedArtefact]:
    for name in store.documents("sweeps/"):
        data = store.read_document(name)
        if data is not None:
            yield from read_document(data).artefacts


def _replanned(artefact_id: str, store: Store) -> dict[str, Artefact]:
    """Plan again the stored sweep that has an artefact, for the recipes; nothing where that is not possible now.

    A plan document keeps no recipes. Its sweep may not be plannable today: a source moved, or the law changed.
    """
    for name in store.documents("sweeps/"):
        data = store.read_document(name)
        document = read_document(data) if data is not None else None
        if document is None or all(artefact.id != artefact_id for artefact in document.artefacts):
            continue
        try:
            sweep = Sweep.model_validate(document.sweep)
            found = {artefact.id: artefact for artefact in plan(sweep, gather(sweep)).artefacts}
        except (InputError, ValueError):
            continue
        if artefact_id in found:
            return found
    return {}


def _flat(recipe: Mapping[str, Any], path: str) -> Iterator[str]:
    """Yield ``dotted.path: value`` for every value of a recipe."""
    for key, value in sorted(recipe.items()):
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}{key}.")
        else:
            yield f"{path}{key}: {json.dumps(value, ensure_ascii=False)}"


class _Explanation:
    """Walks from an artefact to what it needs."""

    def __init__(self, store: Store, known: dict[str, Known], manifests: Sequence[Manifest]) -> None:
        self.store = store
        self.known = known
        self.manifests = {manifest.id: manifest for manifest in manifests}
        self.told: set[str] = set()

    def of(self, artefact_id: str, indent: str) -> Iterator[str]:
        artefact = self.known[artefact_id]
        (found,) = status([artefact], self.store)
        yield f"{indent}{artefact_id}: {found.state}" + (f" ({_labels(artefact)})" if _labels(artefact) else "")
        if artefact_id in self.told:
            yield f"{indent}  as above"
            return
        self.told.add(artefact_id)
        indent += "  "
        if found.state == "committed":
            yield from self._committed(artefact, indent)
            return
        if found.state == "failed":
            yield f"{indent}failed when it was last made: {' '.join((found.reason or '').split())}"
        if found.state == "damaged":
            yield from (f"{indent}{problem}" for problem in self.store.problems(artefact_id))
        yield from self._nearest(artefact, indent)
        for need in artefact.needs:
            if need not in self.manifests and need in self.known:
                yield f"{indent}it needs, and the store has not:"
                yield from self.of(need, indent + "  ")

    def _committed(self, artefact: Known, indent: str) -> Iterator[str]:
        try:
            manifest = self.store.manifest(artefact.id)
        except DamagedArtefactError as error:
            yield f"{indent}{error}"
            return
        if manifest is None:
            return
        yield f"{indent}nothing to do: made {manifest.created}, {manifest.rows} rows, {len(manifest.files)} files"
        versions = manifest.facts.get("versions", {})
        yield f"{indent}by {', '.join(f'{name} {version}' for name, version in versions.items())}"
        yield f"{indent}recipe:"
        yield from (f"{indent}  {line}" for line in _flat(manifest.recipe, ""))
        if manifest.needs:
            yield f"{indent}from {', '.join(manifest.needs)}"

    def _nearest(self, artefact: Known, indent: str) -> Iterator[str]:
        """Compare with the committed artefact of the same kind whose recipe, and what it needs, differ least."""
        if isinstance(artefact, PlannedArtefact):
            yield f"{indent}its sweep cannot be planned here now, so its recipe is unknown; give --sweep FILE"
            return
        others = [manifest for manifest in self.manifests.values() if manifest.kind == artefact.kind]
        others = [manifest for manifest in others if manifest.id != artefact.id]
        if not others:
            yield f"{indent}the store has no committed {artefact.kind} to compare it with: it is new"
            return
        scored = [(self._differences(manifest, artefact), manifest) for manifest in others]
        # The same name (tasks, method and seed) is nearer than fewer lines; of equals the newest.
        scored.sort(key=lambda each: (each[1].created, each[1].id), reverse=True)
        lines, manifest = min(scored, key=lambda each: (each[1].name != artefact.name, len(each[0])))
        yield f"{indent}nearest of {len(others)} committed: {manifest.id} (made {manifest.created}); stored -> planned:"
        yield from (f"{indent}  {line}" for line in lines)

    def _differences(self, manifest: Manifest, artefact: Artefact) -> list[str]:
        lines = recipe_diff(manifest.recipe, artefact.recipe)
        old, new = list(manifest.needs), list(artefact.needs)
        for index in range(max(len(old), len(new))):
            before = old[index] if index < len(old) else None
            after = new[index] if index < len(new) else None
            if before != after:
                lines.append(f"needs[{index}]: {before or '(none)'} -> {after or '(none)'}")
                lines += self._inside(before, after)
        return lines

    def _inside(self, before: str | None, after: str | None) -> list[str]:
        """Return what differs between two things that are needed, where both recipes are known."""
        old = self.manifests.get(before) if before else None
        planned = self.known.get(after) if after else None
        new = planned.recipe if isinstance(planned, Artefact) else None
        if new is None and after in self.manifests:
            new = self.manifests[after].recipe
        if old is None or new is None or (planned is not None and old.kind != planned.kind):
            return []
        lines = recipe_diff(old.recipe, new)
        if isinstance(planned, Artefact) and list(old.needs) != list(planned.needs):
            lines += [f"needs: {json.dumps(old.needs)} -> {json.dumps(list(planned.needs))}"]
        return [f"  {line}" for line in lines]
