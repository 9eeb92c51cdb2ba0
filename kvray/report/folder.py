"""Where a report goes: a folder of the store, a directory or a bucket, with a note of what the report was made from.

The note is removed before anything else is written and comes back last, so a report with a note is complete. It lists
the files: figures of an earlier report that the new one lacks are removed, and nothing else is.
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
"""The note's file name."""
FIGURES = "figures/"
"""Folder of a report's figures."""


def made_from(store: Store, progress: Progress) -> dict[str, str]:
    """Return what a report shows, in digests: two reports made from the same need not both be written."""
    times = {one: manifest.created for one, manifest in progress.manifests.items()}
    parts = {"plan": progress.document, "committed": times, "states": progress.states, "failures": progress.failures}
    digests = {name: hashlib.sha256(canonical_json(part)).hexdigest() for name, part in parts.items()}
    return {"kvray": kvray.__version__, "store": store.uri, **digests}


def fill(folder: Folder, files: Mapping[str, bytes], source: Mapping[str, str]) -> None:
    """Write a report's files in their order over an older report, and remove the figures that only the older one had.

    Args:
        folder: where to.
        files: by name; whoever sees the last one has the rest.
        source: of :func:`made_from`.

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
    """Return whether a folder holds a complete report made from this."""
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
    """A folder of a store; all that is in it is the report's."""

    def __init__(self, store: Store, folder: str, place: str) -> None:
        self._store, self._folder, self.place = store, folder, place

    def put(self, name: str, data: bytes) -> None:
        """Write a file, over an older one."""
        self._store.write_document(f"{self._folder}/{name}", data)

    def read(self, name: str) -> bytes | None:
        """Return a file, None where there is none."""
        return self._store.read_document(f"{self._folder}/{name}")

    def delete(self, name: str) -> None:
        """Remove a file; nothing happens where there is none."""
        self._store.delete_document(f"{self._folder}/{name}")

    def figures(self) -> list[str]:
        """Return the figures of an earlier report: all that are here, since nobody else writes here."""
        return [name for name in self.names() if name.startswith(FIGURES)]

    def names(self) -> list[str]:
        """Return the names of all files of the report."""
        names = self._store.documents(f"{self._folder}/")
        return [name.removeprefix(f"{self._folder}/") for name in names]


class Directory(Place):
    """A directory or a prefix of a bucket, which may hold files of the user's beside the report."""

    def figures(self) -> list[str]:
        """Return the figures of an earlier report that the note lists."""
        listed = _note(self).get("files")
        names = [name for name in listed if isinstance(name, str)] if isinstance(listed, list) else []
        return [name for name in names if PurePosixPath(name).parent == PurePosixPath(FIGURES)]


Folder = StoreFolder | Directory
"""Where a report goes; ``place`` is that place as a user would open it: a path, or a URI."""
