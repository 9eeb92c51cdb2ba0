"""Where a report is written: a folder of the store, a directory or a bucket.

A note of the report's files and sources is deleted first and written last, so a report with a note is complete.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import PurePosixPath

import kvray
from kvray.results.snapshot import Progress
from kvray.store.fingerprint import canonical_json
from kvray.store.output import Place
from kvray.store.store import Store

NOTE = "made-from.json"
FIGURES = "figures/"


def made_from(store: Store, progress: Progress) -> dict[str, str]:
    """Return digests of everything that a report depends on."""
    times = {one: manifest.created for one, manifest in progress.manifests.items()}
    parts = {"plan": progress.document, "committed": times, "states": progress.states, "failures": progress.failures}
    digests = {name: hashlib.sha256(canonical_json(part)).hexdigest() for name, part in parts.items()}
    return {"kvray": kvray.__version__, "store": store.uri, **digests}


def fill(folder: Folder, files: Mapping[str, bytes], source: Mapping[str, str]) -> None:
    """Write a report's files in order, and remove figures that only an older report had.

    Raises:
        StoreError: the store or the directory cannot be written.
    """
    old = [name for name in folder.figures() if name not in files]
    folder.delete(NOTE)
    for name, data in files.items():
        folder.put(name, data)
    for name in old:
        folder.delete(name)
    folder.put(NOTE, (json.dumps({**source, "files": list(files)}, indent=1) + "\n").encode())


def holds(folder: StoreFolder, source: Mapping[str, str]) -> bool:
    """Return whether a folder holds a complete report made from ``source``."""
    note = _note(folder)
    listed = note.get("files")
    complete = isinstance(listed, list) and set(listed) <= set(folder.names())
    return complete and {name: note.get(name) for name in source} == dict(source)


def _note(folder: Folder) -> dict[str, object]:
    try:
        note = json.loads(folder.read(NOTE) or b"{}")
    except ValueError:
        return {}
    return note if isinstance(note, dict) else {}


class StoreFolder:
    """A folder of a store, which holds nothing but the report."""

    def __init__(self, store: Store, folder: str, place: str) -> None:
        self._store, self._folder, self.place = store, folder, place

    def put(self, name: str, data: bytes) -> None:
        """Write or replace a file."""
        self._store.write_document(f"{self._folder}/{name}", data)

    def read(self, name: str) -> bytes | None:
        """Return a file; None where it does not exist."""
        return self._store.read_document(f"{self._folder}/{name}")

    def delete(self, name: str) -> None:
        """Remove a file if it exists."""
        self._store.delete_document(f"{self._folder}/{name}")

    def figures(self) -> list[str]:
        """Return the figures of an earlier report."""
        return [name for name in self.names() if name.startswith(FIGURES)]

    def names(self) -> list[str]:
        """Return the names of all files."""
        names = self._store.documents(f"{self._folder}/")
        return [name.removeprefix(f"{self._folder}/") for name in names]


class Directory(Place):
    """A directory or a prefix of a bucket, which may also hold files of the user."""

    def figures(self) -> list[str]:
        """Return the figures of an earlier report that the note lists."""
        listed = _note(self).get("files")
        names = [name for name in listed if isinstance(name, str)] if isinstance(listed, list) else []
        return [name for name in names if PurePosixPath(name).parent == PurePosixPath(FIGURES)]


Folder = StoreFolder | Directory
"""Where a report is written; ``place`` is its path or URI."""
