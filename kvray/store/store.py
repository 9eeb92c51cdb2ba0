"""The store: committed artefacts on a local disk, NFS, ``s3://`` or ``gs://``; the only writer of final paths.

    <root>/<kind folder>/<name>-<fingerprint[:16]>/{files…, manifest.json}     artefacts; those of rows: data/*.parquet
    <root>/sweeps/…, failures/…, reports/…, spent/…, tensorboard/…             documents
    <root>/.work/…                                                             scratch, never listed

Files are written whole or not at all; the manifest is written last, once, and never over another. Its presence means
that the artefact is whole; a file that no manifest lists does not exist for readers. The first commit wins, and nothing
is written into a committed artefact.

One run makes an artefact at a time: :mod:`kvray.store.leases` sees to that, for any number of runs. Where a run was
suspended, and another makes what it held, both may write for a while: manifests and the chunks of answers are created,
never replaced, and datasets have the same bytes whoever makes them.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from kvray.errors import DamagedArtefactError, RecipeMismatchError, StoreError
from kvray.store import content
from kvray.store.fingerprint import plain, recipe_diff
from kvray.store.manifest import (
    MANIFEST,
    FileEntry,
    Manifest,
    Presence,
    State,
    describe,
    now,
    parse,
    seal,
    with_provenance,
)
from kvray.store.places.files import mapped
from kvray.store.root import FOLDERS, NAME_LENGTH, Root


@dataclass(frozen=True)
class Outcome:
    """How the work on one artefact ended; ``error`` is None, or a line or two for the user."""

    artefact_id: str
    error: str | None
    elsewhere: bool = False  # another run made it meanwhile
    left: bool = False  # it was not made, as the budget is spent; no failure


def readable_name(name: str) -> str:
    """Return the readable part of an artefact's id: its name, cut to :data:`~kvray.store.root.NAME_LENGTH`."""
    return name[:NAME_LENGTH].rstrip("-._")


def artefact_id(kind: str, name: str, fingerprint: str) -> str:
    """Return the id, also the path, of an artefact: ``<folder>/<name>-<16 digits of the fingerprint>``."""
    return f"{FOLDERS[kind]}/{readable_name(name)}-{fingerprint[:16]}"


class Store(Root):
    """Artefacts and documents under one root. Picklable: it carries its URI alone and connects where it is used."""

    def write(self, artefact_id: str, name: str, data: pa.Table | bytes | Path) -> FileEntry:
        """Write a file of an artefact and return its entry; a committed artefact returns its own, unchanged.

        A table becomes a Parquet file, and a local file is copied in flat memory, since it is mapped. Raises StoreError
        if the place cannot be written, or the name is refused.
        """
        self._check_name(artefact_id, name)
        committed = self.manifest(artefact_id)
        if committed is not None:
            entry = next((entry for entry in committed.files if entry.name == name), None)
            if entry is None or self._files.size(self.path(artefact_id, name)) != entry.bytes:
                raise StoreError(f"{artefact_id} is committed, so {name} cannot be written into it; discard it first")
            return entry
        rows = None
        if isinstance(data, pa.Table):
            data, rows = content.encode(data), data.num_rows
        view = mapped(data) if isinstance(data, Path) else memoryview(data)
        self._files.put(self.path(artefact_id, name), view)
        return FileEntry(name, rows, view.nbytes, hashlib.sha256(view).hexdigest())

    def create(self, artefact_id: str, name: str, table: pa.Table) -> FileEntry | None:
        """Write a table as a Parquet file of an artefact and return its entry, None if there is a file of that name.

        What was created is never replaced, so that two which make the same artefact, though only one should, end with
        the same files; it is one request. Raises StoreError as :meth:`write` does.
        """
        self._check_name(artefact_id, name)
        view = memoryview(content.encode(table))
        if not self._files.put_new(self.path(artefact_id, name), view):
            return None
        return FileEntry(name, table.num_rows, view.nbytes, hashlib.sha256(view).hexdigest())

    def read_file_table(self, artefact_id: str, name: str) -> pa.Table | None:
        """Return a Parquet file of an artefact that need not be committed; None if absent or unreadable."""
        try:
            return content.read(self._files, self.path(artefact_id, name))
        except content.UnreadableError:
            return None

    def entry(self, artefact_id: str, name: str) -> FileEntry | None:
        """Describe a stored file, for resuming; None if it is absent, or an incomplete Parquet file."""
        return content.describe(self._files, self.path(artefact_id, name), name)

    def commit(
        self,
        *,
        id: str,
        kind: str,
        name: str,
        fingerprint: str,
        recipe: Mapping[str, Any],
        needs: Sequence[str],
        files: Iterable[FileEntry],
        schema: pa.Schema | None = None,
        measurements: Mapping[str, Any] | None = None,
        created: bool = False,
    ) -> Manifest:
        """Write the manifest, which makes the artefact exist, and return it, or the one committed first.

        Versions and hardware are added to the measurements. Temporary files of dead writers are removed. On an object
        store it is three requests: a listing, which shows an earlier manifest and the files with their sizes, the seal
        and the manifest; two if all files were ``created`` (:meth:`create`) or read, as nobody replaces those.

        Raises:
            RecipeMismatchError: another recipe is committed at this id; the message shows the difference.
            DamagedArtefactError: the artefact has an unreadable manifest (:meth:`discard` it first).
            StoreError: a listed file is missing or has another size, or the id does not fit the kind.
            TypeError: the recipe or the measurements hold a value that JSON cannot.
        """
        self._check_id(id)
        if FOLDERS.get(kind) != id.partition("/")[0]:
            raise StoreError(f"{id} is not of kind {kind!r}; the kinds and their folders: {FOLDERS}")
        entries = sorted(files, key=lambda entry: entry.name)
        new = Manifest(
            id=id,
            kind=kind,
            name=name,
            fingerprint=fingerprint,
            recipe=plain(recipe),
            needs=list(needs),
            files=entries,
            rows=sum(entry.rows or 0 for entry in entries),
            schema=describe(schema) if schema is not None else None,
            measurements=with_provenance(measurements),
            created=now(),
        )
        looked = not (created and self._files.remote)
        found = self._files.listing(self.path(id), hidden=True) if looked else {}
        stored = self.manifest(id) if MANIFEST in found else None
        if stored is None:
            if looked:
                self._check_present(new, found)
            data = memoryview(new.to_bytes())
            if self._files.remote:
                sizes = {entry.name: entry.bytes for entry in entries} | {MANIFEST: data.nbytes}
                self._files.put(self.path(id, seal(sizes)), memoryview(b""))
            # Not written: another writer was first since the listing.
            stored = new if self._files.put_new(self.path(id, MANIFEST), data) else self.manifest(id)
        if stored is None:
            raise StoreError(f"{id}: its manifest vanished while it was committed; is something deleting the store?")
        if stored.fingerprint != new.fingerprint or stored.recipe != new.recipe:
            lines = recipe_diff(stored.recipe, new.recipe) or [f"fingerprint: {stored.fingerprint} -> {fingerprint}"]
            differences = "\n  ".join(lines)
            raise RecipeMismatchError(f"{id} is committed with another recipe (stored -> new):\n  {differences}")
        self._files.clean(self.path(id), found)
        return stored

    def manifest(self, artefact_id: str) -> Manifest | None:
        """Return an artefact's manifest, None if it is not committed; DamagedArtefactError if it is unreadable."""
        data = self._files.read(self.path(artefact_id, MANIFEST))
        return None if data is None else parse(data, artefact_id)

    def read_table(self, artefact_id: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Return all Parquet files of a committed artefact, in the manifest's order, as one table.

        Raises StoreError if it is not committed, has no such column, or holds no Parquet file, and DamagedArtefactError
        if a file is missing or unreadable, or its number of rows is not the manifest's.
        """
        listed = [entry for entry in self._committed(artefact_id).files if entry.name.endswith(".parquet")]
        if not listed:
            raise StoreError(f"{artefact_id} holds no Parquet file")
        directory = self.path(artefact_id)
        tables = self.each(lambda entry: content.table(self._files, directory, entry, columns), listed)
        return pa.concat_tables(tables, promote_options="default")  # a file of an older version may lack a column

    def fetch(self, artefact_id: str, into: Path) -> Path:
        """Return a local directory with a committed artefact's files, each verified by sha256.

        On a local store it is the artefact's own, not to be written to; else ``into``, where complete files are kept.
        Raises StoreError if it is not committed, DamagedArtefactError if a file is missing or its sha256 differs.
        """
        entries, directory = self._committed(artefact_id).files, self.path(artefact_id)
        if self._location.scheme == "local":
            if problems := self.problems(artefact_id, verify=True):
                raise DamagedArtefactError("; ".join(problems))
            return Path(directory)
        self.each(lambda entry: content.copy(self._files, directory, entry, into), entries)
        return into

    def problems(self, artefact_id: str, verify: bool = False) -> list[str]:
        """Return what is wrong with an artefact, [] if nothing: by sizes and rows and, with ``verify``, by sha256."""
        try:
            manifest = self.manifest(artefact_id)
        except DamagedArtefactError as error:
            return [str(error)]
        if manifest is None:
            return [f"{artefact_id} is not committed: it has no {MANIFEST}"]
        directory = self.path(artefact_id)
        sizes = self._files.listing(directory)

        def problem(entry: FileEntry) -> str | None:
            return content.problem(self._files, directory, entry, sizes.get(entry.name), verify)

        return [text for text in self.each(problem, manifest.files) if text]

    def state(self, artefact_id: str, verify: bool = False) -> State:
        return self.states([artefact_id], verify)[artefact_id]

    def states(self, ids: Iterable[str], verify: bool = False) -> dict[str, State]:
        """Return the state of many artefacts; see :meth:`listing`."""
        return {one: found.state for one, found in self.listing(ids, verify).items()}

    def listing(self, ids: Iterable[str], verify: bool = False, apart: bool = False) -> dict[str, Presence]:
        """Return what is there of many artefacts, from one recursive listing of each kind's folder.

        With ``apart`` each artefact is listed by itself, which is less where only some of many are asked for. Compares
        names and sizes with manifests (0.1 s per 1,000) or a bucket's seals; ``verify`` adds rows and sha256.
        """
        wanted = list(dict.fromkeys(ids))
        for one in wanted:
            self._check_id(one)
        contents = self._infos_apart(wanted) if apart else self._infos({one.partition("/")[0] for one in wanted})
        sizes = {one: {name: info.size for name, info in contents.get(one, {}).items()} for one in wanted}
        states: dict[str, State] = {one: "committed" if MANIFEST in sizes[one] else "missing" for one in wanted}
        # Without a seal (on a disk, or after damage) a manifest says which files there should be.
        unsealed = [one for one in wanted if MANIFEST in sizes[one] and (verify or seal(sizes[one]) not in sizes[one])]
        states |= zip(unsealed, self.each(lambda one: self._state(one, sizes[one], verify), unsealed), strict=True)

        def presence(one: str) -> Presence:
            names = sorted(name for name in sizes[one] if name != MANIFEST and not name.startswith("."))
            files = {name: sizes[one][name] for name in names}
            manifest = contents.get(one, {}).get(MANIFEST)
            return Presence(states[one], files, manifest.mtime_ns if manifest else None)

        return {one: presence(one) for one in wanted}

    def manifests(self, kind: str | None = None) -> list[Manifest]:
        """Return the manifests of all committed artefacts, ordered by id, without the unreadable ones."""
        folders = [kind] if kind else FOLDERS
        return list(self.read_manifests(sorted(one for folder in folders for one in self.committed(folder))).values())

    def committed(self, kind: str) -> dict[str, int]:
        """Return the ids of all artefacts of a kind that have a manifest, with its modification time in ns."""
        suffix, infos = f"/{MANIFEST}", self._files.infos(self.path(FOLDERS[kind]))
        found = {name.removesuffix(suffix): info for name, info in infos.items() if name.endswith(suffix)}
        return {f"{FOLDERS[kind]}/{name}": int(info.mtime_ns) for name, info in found.items()}

    def read_manifests(self, ids: Sequence[str]) -> dict[str, Manifest]:
        """Return manifests by id, of those artefacts that have a readable one."""

        def read(one: str) -> Manifest | None:
            try:
                return self.manifest(one)
            except DamagedArtefactError:
                return None

        return {manifest.id: manifest for manifest in self.each(read, ids) if manifest}

    def discard(self, artefact_id: str) -> None:
        """Remove an artefact, its manifest first, so that a committed one never lacks files."""
        self._check_id(artefact_id)
        self._files.delete(self.path(artefact_id, MANIFEST))
        self._files.delete_tree(self.path(artefact_id))

    def _infos(self, folders: Iterable[str]) -> dict[str, dict[str, pafs.FileInfo]]:
        """Return what lies in some folders, by artefact and name in it."""
        contents: dict[str, dict[str, pafs.FileInfo]] = {}
        for folder in sorted(folders):
            for name, info in self._files.infos(self.path(folder), hidden=self._files.remote).items():
                one, _, rest = name.partition("/")
                contents.setdefault(f"{folder}/{one}", {})[rest] = info
        return contents

    def _infos_apart(self, ids: Sequence[str]) -> dict[str, dict[str, pafs.FileInfo]]:
        """Return the same of some artefacts, a listing for each."""
        found = self.each(lambda one: self._files.infos(self.path(one), hidden=self._files.remote), ids)
        return dict(zip(ids, found, strict=True))

    def _check_id(self, artefact_id: str) -> None:
        self.path(artefact_id)
        folder, _, name = artefact_id.partition("/")
        if folder not in FOLDERS.values() or not name or "/" in name or name.startswith("."):
            raise StoreError(
                f"{artefact_id!r} is no artefact id: expected {' | '.join(FOLDERS.values())}, a / and a name"
            )

    def _check_name(self, artefact_id: str, name: str) -> None:
        self._check_id(artefact_id)
        self.path(artefact_id, name)
        if name == MANIFEST or any(part.startswith(".") for part in name.split("/")):
            raise StoreError(f"{artefact_id}: a file of an artefact cannot be called {name!r}")

    def _state(self, one: str, sizes: Mapping[str, int], verify: bool) -> State:
        """Return the state of an artefact by its manifest."""
        try:
            manifest = self.manifest(one)
        except DamagedArtefactError:
            return "damaged"
        if manifest is None:  # discarded since the listing
            return "missing"
        whole = all(sizes.get(entry.name) == entry.bytes for entry in manifest.files)
        return "committed" if whole and not (verify and self.problems(one, verify=True)) else "damaged"

    def _check_present(self, new: Manifest, sizes: Mapping[str, int]) -> None:
        for entry in new.files:
            self._check_name(new.id, entry.name)
            if sizes.get(entry.name) != entry.bytes:
                found = "is missing" if entry.name not in sizes else f"has {sizes[entry.name]} bytes"
                raise StoreError(f"{new.id} cannot be committed: {entry.name} {found}, expected {entry.bytes} bytes")

    def _committed(self, artefact_id: str) -> Manifest:
        manifest = self.manifest(artefact_id)
        if manifest is None:
            raise StoreError(f"{artefact_id} is not committed in {self.uri}")
        return manifest
