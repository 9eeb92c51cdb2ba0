"""Why an artefact is to be made: its state, and how its recipe differs from those in the store, nearest first."""

import difflib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kvray.errors import InputError
from kvray.planning.artefacts import Artefact, PlannedArtefact, described, status
from kvray.planning.inputs import gather
from kvray.planning.plan import plan
from kvray.store.fingerprint import recipe_diff
from kvray.store.manifest import Manifest
from kvray.store.store import Store
from kvray.sweep.model import Sweep
from kvray.tasks.problems import nearest

_SHOWN = 10  # artefacts listed in full in the terminal; the others get a line each


def explain(cell: str, store: Store, planned: Sequence[Artefact] | None = None) -> dict[str, Any]:
    """Explain one artefact: ``cell`` is its id, or a part of an id that fits no other.

    It is looked up in ``planned``, or if that is None in the sweeps that were run into the store.

    Returns:
        id, kind, state and labels. For a committed artefact, ``made``: created, rows, files, versions, recipe, needs.
        For any other: ``stored``, the committed artefacts of its kind, nearest first, each with id, created and
        differences ("dotted.path: stored -> planned"), null if the recipe is unknown; ``needs`` that the store lacks,
        explained likewise; ``problems``, why it failed or what is damaged.

    Raises:
        InputError: no artefact fits, or several do; the message lists the nearest first.
    """
    known: dict[str, PlannedArtefact] = {}
    documents = [] if planned is not None else [store.plan_document(name) for name in store.sweeps()]
    for artefact in planned or itertools.chain.from_iterable(map(described, documents)):
        known.setdefault(artefact.id, artefact)
    found = find(cell, known)
    known |= _replanned(found.id, documents)
    return _Explanation(store, known, {manifest.id: manifest for manifest in store.manifests()}).of(found.id)


def find(cell: str, known: dict[str, PlannedArtefact]) -> PlannedArtefact:
    """Return the one artefact with this id, else start of a name, else part of an id, else label.

    Raises InputError if none or several fit.
    """
    if cell in known:
        return known[cell]
    starts = [key for key in known if key.partition("/")[2].startswith(cell) or key.startswith(cell)]
    fits = starts or [key for key in known if cell in key]
    fits = fits or [key for key, artefact in known.items() if cell in artefact.labels.values()]
    if len(fits) == 1:
        return known[fits[0]]
    if fits:
        fits.sort(key=lambda key: -difflib.SequenceMatcher(None, cell, key.rpartition("-")[0]).ratio())
        shown = "\n".join(f"  {key}  {_labels(known[key].labels)}" for key in fits)
        raise InputError(f"{cell!r} fits {len(fits)} artefacts; expected a part of one id alone:\n{shown}")
    near = nearest(cell.rpartition("/")[2], [key.partition("/")[2] for key in known])
    names = [key for key in known if near is not None and key.endswith(f"/{near}")] or list(known)[:_SHOWN]
    listed = "\n".join(f"  {key}" for key in names) or "  none: no sweep was run into this store; give --sweep FILE"
    raise InputError(f"{cell!r} is no artefact of the plan; {'did you mean' if near else 'it has'}:\n{listed}")


def _labels(labels: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in labels.items() if value is not None)


def _replanned(artefact_id: str, documents: Sequence[Mapping[str, Any]]) -> dict[str, Artefact]:
    """Plan an artefact's stored sweep again, since plan documents keep no recipes; empty if that fails today."""
    for document in documents:
        if all(artefact["id"] != artefact_id for artefact in document["artefacts"]):
            continue
        try:
            sweep = Sweep.model_validate(document["sweep"])
            found = {artefact.id: artefact for artefact in plan(sweep, gather(sweep)).artefacts}
        except (InputError, ValueError):
            continue
        if artefact_id in found:
            return found
    return {}


def _flat(recipe: Mapping[str, Any], path: str) -> Iterator[str]:
    for key, value in sorted(recipe.items()):
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}{key}.")
        else:
            yield f"{path}{key}: {json.dumps(value, ensure_ascii=False)}"


def lines(explained: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """Format an explanation of :func:`explain` for a terminal."""
    labels = _labels(explained["labels"])
    yield f"{indent}{explained['id']}: {explained['state']}" + (f" ({labels})" if labels else "")
    nested = bool(indent)
    indent += "  "
    if explained.get("above"):
        yield f"{indent}as above"
    if "made" in explained:
        yield from _made(explained["made"], indent)
    failed = "failed when it was last made: " if explained["state"] == "failed" else ""
    yield from (f"{indent}{failed}{' '.join(problem.split())}" for problem in explained.get("problems", ()))
    if "stored" in explained:
        yield from _nearest(explained, indent, 1 if nested else _SHOWN)
    for need in explained.get("needs", ()):
        yield f"{indent}it needs, and the store has not:"
        yield from lines(need, indent + "  ")


def _made(made: Mapping[str, Any], indent: str) -> Iterator[str]:
    yield f"{indent}nothing to do: made {made['created']}, {made['rows']} rows, {made['files']} files"
    yield f"{indent}by {', '.join(f'{name} {version}' for name, version in made['versions'].items())}"
    yield f"{indent}recipe:"
    yield from (f"{indent}  {line}" for line in _flat(made["recipe"], ""))
    if made["needs"]:
        yield f"{indent}from {', '.join(made['needs'])}"


def _nearest(explained: Mapping[str, Any], indent: str, most: int) -> Iterator[str]:
    """Format the stored artefacts that one is compared with, ``most`` of them in full."""
    stored = explained["stored"]
    if stored is None:
        yield f"{indent}its sweep cannot be planned here now, so its recipe is unknown; give --sweep FILE"
        return
    if not stored:
        yield f"{indent}the store has no committed {explained['kind']} to compare it with: it is new"
        return
    for at, each in enumerate(stored[:most]):
        head, end = ("then", "") if at else (f"nearest of {len(stored)} committed:", "; stored -> planned")
        yield f"{indent}{head} {each['id']} (made {each['created']}){end}:"
        yield from (f"{indent}  {line}" for line in each["differences"])
    if most == 1 and len(stored) > 1:
        yield f"{indent}and {len(stored) - 1} more: kvray why {explained['id']}"
        return
    for each in stored[most:]:
        number = len(each["differences"])
        yield f"{indent}then {each['id']} (made {each['created']}): {number} difference{'' if number == 1 else 's'}"


@dataclass(frozen=True)
class _Explanation:
    store: Store
    known: Mapping[str, PlannedArtefact]
    manifests: Mapping[str, Manifest]
    explained: set[str] = field(default_factory=set)

    def of(self, artefact_id: str) -> dict[str, Any]:
        """Explain one artefact, or refer to its explanation further up."""
        artefact = self.known[artefact_id]
        (found,) = status([artefact], self.store)
        result: dict[str, Any] = {"id": artefact_id, "kind": artefact.kind, "state": found.state}
        result["labels"] = dict(artefact.labels)
        if artefact_id in self.explained:
            return {**result, "above": True}
        self.explained.add(artefact_id)
        manifest = self.manifests.get(artefact_id)
        if found.state == "committed" and manifest is not None:
            made = {"created": manifest.created, "rows": manifest.rows, "files": len(manifest.files)}
            made["versions"] = manifest.measurements.get("versions", {})
            return {**result, "made": {**made, "recipe": manifest.recipe, "needs": manifest.needs}}
        if found.state == "failed":
            result["problems"] = [found.reason or ""]
        if found.state == "damaged":
            result["problems"] = self.store.problems(artefact_id)
        result["stored"] = self._compared(artefact) if isinstance(artefact, Artefact) else None
        lacking = [need for need in artefact.needs if need not in self.manifests and need in self.known]
        return {**result, "needs": [self.of(need) for need in lacking]}

    def _compared(self, artefact: Artefact) -> list[dict[str, Any]]:
        others = [manifest for manifest in self.manifests.values() if manifest.kind == artefact.kind]
        others = [manifest for manifest in others if manifest.id != artefact.id]
        # The same name (tasks, method and seed) counts as nearer than fewer differences; of equals the newest first.
        others.sort(key=lambda manifest: (manifest.created, manifest.id), reverse=True)
        scored = [(manifest, self._differences(manifest, artefact)) for manifest in others]
        scored.sort(key=lambda each: (each[0].name != artefact.name, len(each[1])))
        return [{"id": each.id, "created": each.created, "differences": lines} for each, lines in scored]

    def _differences(self, old: Manifest, new: Artefact | Manifest) -> list[str]:
        """Return the differences of two recipes and, indented, of what they need instead of each other."""
        lines = recipe_diff(old.recipe, new.recipe)
        for index, (before, after) in enumerate(itertools.zip_longest(old.needs, new.needs)):
            if before == after:
                continue
            lines.append(f"needs[{index}]: {before or '(none)'} -> {after or '(none)'}")
            planned = self.known.get(after or "")
            needed = planned if isinstance(planned, Artefact) else self.manifests.get(after or "")
            stored = self.manifests.get(before or "")
            if stored is not None and needed is not None and stored.kind == needed.kind:
                lines += [f"  {line}" for line in self._differences(stored, needed)]
        return lines
