"""What of a store can go: what no sweep refers to, and what ended runs left; nothing that a live run holds, or fresh.

Everything follows from one listing of the store and from the plan documents of its sweeps. The last day is left alone,
since what it has may belong to a run whose plan is just being written.
"""

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kvray.errors import InputError
from kvray.store.failures import noted
from kvray.store.leases import BEAT, FOLDER, Holder, Leases, Watch
from kvray.store.manifest import MANIFEST
from kvray.store.places.local import TEMPORARY
from kvray.store.root import FOLDERS
from kvray.store.store import Store

DAY_S = 86_400.0
HOLDER = "kvray gc"
"""What the ledger of leases calls who deletes; no sweep can be called so."""

_CHECKPOINTS = ".work/finetunes/"


@dataclass(frozen=True)
class Garbage:
    """Something that can go, with all that lies in it."""

    path: str  # inside the store: an artefact, a folder or a file
    why: str
    bytes: int
    files: int
    folder: bool
    age_s: float  # since it last changed; without bound for the plan of a sweep to forget


@dataclass
class _Found:
    """What would be deleted together: the names in a folder, or [""] for a file, and when the newest was written."""

    names: list[str] = field(default_factory=list)
    bytes: int = 0
    newest: float = 0.0  # seconds since the epoch


def find(store: Store, older_than_s: float = DAY_S, forget: Collection[str] = ()) -> list[Garbage]:
    """Return what can go, ordered by path, of what has not changed for ``older_than_s``; writes nothing.

    Sweeps to ``forget`` refer to nothing; their plans can go, however fresh. Raises InputError if there is no such
    sweep or a run of it is alive, StoreError if a plan cannot be read, as nobody knows then what it refers to.
    """
    sweeps = store.sweeps()
    if unknown := sorted(set(forget) - set(sweeps)):
        there = ", ".join(sweeps) or "no sweeps"
        raise InputError(f"--forget: found {unknown[0]!r}; the store {store.uri} has {there}")
    contents = _contents(store)
    ledger, dead, _ = Watch(store).look()
    gone = {holder.run for holder in [*dead, *_silent(contents, ledger.runs)]}
    live = {run: holder for run, holder in ledger.runs.items() if run not in gone and holder.sweep != HOLDER}
    for holder in live.values():
        if holder.sweep in forget:
            raise InputError(f"--forget: found {holder.sweep}, of which a run is alive: {holder}; stop it first")
    kept = [sweep for sweep in sweeps if sweep not in forget]
    planned = {each["id"]: each for sweep in kept for each in store.plan_document(sweep)["artefacts"]}
    held = {one for one, run in ledger.held.items() if run in live}
    reasons = _Reasons(store, kept, planned, noted(store), live, held, contents)
    found = []
    for path, what in contents.items():
        forgotten = path in {_plan_of(sweep) for sweep in forget}
        why = "plan of a sweep to forget" if forgotten else reasons.why(path)
        age_s = float("inf") if forgotten else time.time() - what.newest
        if why and age_s >= older_than_s:
            found.append(Garbage(path, why, what.bytes, len(what.names), what.names != [""], age_s))
    return sorted(found, key=lambda each: each.path)


def delete(store: Store, garbage: Iterable[Garbage], forget: Collection[str] = ()) -> list[Garbage]:
    """Delete what :func:`find` found and return what is gone, without what a run has come to need meanwhile.

    Artefacts are leased first, so that no run makes them at the same time, and plans are read once more after that.
    """
    wanted = {each.path: each for each in garbage}
    with Leases(store, HOLDER) as leases:
        for sweep in forget:
            store.delete_document(_plan_of(sweep))
        artefacts = {path for path in wanted if _is_artefact(path)}
        free = leases.take(artefacts) | (wanted.keys() - artefacts)
        still = {each.path for each in find(store, 0.0)} | {_plan_of(sweep) for sweep in forget}
        done = [each for path, each in sorted(wanted.items()) if path in free & still]
        leases.expel(each.path.removeprefix(f"{FOLDER}/{BEAT}") for each in done if each.path.startswith(FOLDER))
        store.each(lambda each: _remove(store, each), done)
    return done


@dataclass(frozen=True)
class _Reasons:
    """What speaks for deleting, by path."""

    store: Store
    sweeps: Collection[str]
    planned: Mapping[str, Any]  # artefacts of plan documents, by id
    failed: Collection[str]  # ids with a failure note
    live: Mapping[str, Holder]  # runs
    held: Collection[str]  # ids that they hold
    contents: Mapping[str, _Found]

    def why(self, path: str) -> str | None:
        """Return why something can go; None if it is to stay."""
        if _is_temporary(path):
            return "temporary file of a dead writer" if self.store.abandoned(path) else None
        if _is_artefact(path):
            return None if self._wanted(path) else "no sweep refers to it"
        rules: tuple[tuple[str, str, Callable[[str], bool]], ...] = (
            ("failures/", "note on an artefact of no sweep", self._wanted),
            ("api/", "note on an artefact of no sweep", self._wanted),
            # Of two sweeps, "A+B": the first is of this store.
            ("reports/", "report of no sweep", lambda name: name.partition("+")[0] in self.sweeps),
            ("tensorboard/", "event files of no sweep", lambda sweep: sweep in self.sweeps),
            ("spent/", "hours of no sweep", lambda name: name.partition("/")[0] in self.sweeps),
            ("doctor/", "probe of kvray doctor", lambda _: False),
            (".work/slots/", "scratch of ended runs", lambda _: bool(self.live)),
            (f"{FOLDER}/{BEAT}", "lease of a dead run", lambda run: run in self.live),
        )
        for prefix, why, stays in rules:
            if path.startswith(prefix):
                return None if stays(path.removeprefix(prefix).removesuffix(".json")) else why
        return self._checkpoint(path) if path.startswith(_CHECKPOINTS) else None

    def _wanted(self, artefact_id: str) -> bool:
        return artefact_id in self.planned or artefact_id in self.held

    def _checkpoint(self, path: str) -> str | None:
        """Return why the checkpoint of a finetune can go; that of an interrupted one is where its next run goes on."""
        fingerprint = path.removeprefix(_CHECKPOINTS)
        owners = [one for one, each in self.planned.items() if each["fingerprint"] == fingerprint]
        if any(one.endswith(f"-{fingerprint[:16]}") for one in self.held):
            return None
        if not owners:
            return "checkpoint of a finetune of no sweep"
        if all(MANIFEST in self.contents.get(one, _Found()).names for one in owners):
            return "checkpoint of a committed finetune"
        return "checkpoint of a failed finetune" if all(one in self.failed for one in owners) else None


def _contents(store: Store) -> dict[str, _Found]:
    """Return everything in the store, by what would be deleted together: artefacts, folders of work, single files."""
    found: dict[str, _Found] = {}
    for name, info in store.everything().items():
        parts = name.split("/")
        depth = 3 if parts[0] == ".work" else 2
        whole = parts[0] in (*FOLDERS.values(), "reports", "tensorboard") or (
            parts[0] == ".work" and not name.startswith(FOLDER)
        )
        path = "/".join(parts[:depth]) if whole and not _is_temporary(name) else name
        what = found.setdefault(path, _Found())
        what.names.append(name[len(path) + 1 :])
        what.bytes += info.size
        what.newest = max(what.newest, (info.mtime_ns or 0) / 1e9)
    return found


def _remove(store: Store, each: Garbage) -> None:
    if _is_artefact(each.path):
        store.discard(each.path)
    elif each.folder:
        store.folder(each.path).clear()
    else:
        store.remove(each.path)


def _is_artefact(path: str) -> bool:
    return path.count("/") == 1 and path.partition("/")[0] in FOLDERS.values()


def _is_temporary(path: str) -> bool:
    return path.rpartition("/")[2].startswith(TEMPORARY)


def _plan_of(sweep: str) -> str:
    return f"sweeps/{sweep}.json"


def _silent(contents: Mapping[str, _Found], runs: Mapping[str, Holder]) -> list[Holder]:
    """Return the runs without a beat for a day: one look tells no more, as the machines' clocks may differ."""
    beats = {run: contents.get(f"{FOLDER}/{BEAT}{run}", _Found()).newest for run in runs}
    return [holder for run, holder in runs.items() if time.time() - beats[run] > DAY_S]
