"""The root of a store: where it is, the names inside it, and documents (small files outside artefacts)."""

import contextlib
import functools
import json
import os
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pyarrow.fs as pafs

from kvray.console import say
from kvray.errors import InputError, StoreError
from kvray.store.patience import asked_for
from kvray.store.places.files import Files, Folder
from kvray.store.places.local import TEMPORARY
from kvray.store.places.object_store import LOOK_S, connect, locate

FOLDERS = {"writing": "writings", "dataset": "datasets", "finetune": "finetunes", "predictions": "predictions"}
"""Folder of each kind of artefact."""
PLAN_FORMAT = 1  # version of the plan documents, sweeps/<name>.json
NAME_LENGTH = 60  # characters of the readable part of an artefact's id
IN_FLIGHT = 16  # concurrent requests to an object store; pyarrow's client holds 25 connections

_T = TypeVar("_T")
_U = TypeVar("_U")


class Root:
    """A place that holds files. Its ``uri`` is absolute and holds no credential; ``root`` is its path inside ``fs``."""

    def __init__(self, uri: str | os.PathLike[str]) -> None:
        """Take a directory, ``s3://bucket/prefix?endpoint_override=…&scheme=…&region=…`` or ``gs://bucket/prefix``.

        Nothing is opened or created yet; InputError if the URI is not valid. What may pass (a store that does not
        answer, a full disk) is waited out, for :data:`~kvray.store.patience.VARIABLE` or minutes without success.
        """
        self._location = locate(os.fspath(uri))
        self.uri = self._location.uri
        self.root = self._location.root
        self._patience_s = asked_for()
        self._reached = False

    def __reduce__(self) -> tuple[Any, ...]:
        known = {"_patience_s": self._patience_s, "_reached": self._reached or "_files" in self.__dict__}
        return type(self), (self.uri,), known

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.uri!r})"

    @functools.cached_property
    def _files(self) -> Files:
        return connect(self._location, patience_s=self._patience_s, reached=self._reached)

    @property
    def fs(self) -> pafs.FileSystem:
        """The pyarrow file system of :meth:`path`, for other libraries; InputError if the place is out of reach."""
        return self._files.lent

    def check(self, write: bool = False) -> None:
        """Check that the store can be reached and, with ``write``, written to; InputError says why if it cannot.

        Writing shows, too, whether two writers of one file are told apart; if not, a line says so.
        """
        probe = self.path(f"{TEMPORARY}probe-{secrets.token_hex(6)}")
        with self.hurry(LOOK_S if self.remote else 0.0):
            self._files.size(probe)
            if not write:
                return
            try:
                exclusive = self._files.exclusive(probe)
            except StoreError as error:
                why = str(error).rpartition(": ")[2].partition(";")[0]
                text = f"store: {self.uri} cannot be written: {why}; make room or give another one (--store)"
                raise InputError(text) from None
        if not exclusive:
            say(
                f"kvray: warning: {self.uri} ignores conditional writes, so that two runs that begin within the "
                "same moment may make the same artefact; start one after the other"
            )

    def hurry(self, seconds: float = 0.0) -> contextlib.AbstractContextManager[None]:
        """Wait no longer than this for what may pass, in all threads, until the context ends."""
        return self._files.patience.at_most(seconds)

    @property
    def remote(self) -> bool:
        """Whether this is an object store: every read is a round trip, and errors may pass."""
        return self._files.remote

    def path(self, artefact_id: str, *names: str) -> str:
        """Return a path inside :attr:`fs`; StoreError if a name is empty, absolute, or leads out of the root."""
        for name in (artefact_id, *names):
            parts = name.split("/")
            if any(part in ("", ".", "..") or "\\" in part or not part.isprintable() for part in parts):
                raise StoreError(f"{name!r} is refused: expected a relative name that stays inside {self.uri}")
        return "/".join((self.root.rstrip("/"), artefact_id, *names))

    def folder(self, name: str) -> Folder:
        """Return a folder of documents, such as ``"reports/mine"``."""
        path = self.path(name)
        return Folder(self._files, path, f"{self._files.prefix}{path}")

    def everything(self) -> dict[str, pafs.FileInfo]:
        """Return pyarrow's information on every file below the root by name, hidden ones too, from one listing."""
        return self._files.infos(self.root.rstrip("/"), hidden=True)

    def abandoned(self, name: str) -> bool:
        """Return whether whoever wrote a temporary file is dead, or has been silent for long."""
        return self._files.abandoned(self.path(name))

    def remove(self, name: str) -> None:
        """Remove any one file, if it exists."""
        self._files.delete(self.path(name))

    def write_document(self, name: str, data: bytes) -> None:
        """Write a small file, whole or not at all; an older one of that name is replaced."""
        self._check_document(name)
        self._files.put(self.path(name), memoryview(data))

    def read_document(self, name: str) -> bytes | None:
        """Return a document, None if it is missing."""
        return self._files.read(self.path(name))

    def documents(self, prefix: str) -> list[str]:
        """Return the names of documents that start with ``prefix`` (``"sweeps/"``), sorted."""
        folder = prefix.rpartition("/")[0]
        if not folder:
            raise StoreError(f"{prefix!r}: expected a prefix with a folder, such as 'sweeps/'")
        names = (f"{folder}/{name}" for name in self._files.listing(self.path(folder)))
        return sorted(name for name in names if name.startswith(prefix))

    def delete_document(self, name: str) -> None:
        """Remove a document, if it exists."""
        self._check_document(name)
        self._files.delete(self.path(name))

    def sweeps(self) -> list[str]:
        """Return the names of the sweeps that were run into the store, sorted."""
        names = self.documents("sweeps/")
        return [name.removeprefix("sweeps/").removesuffix(".json") for name in names if name.endswith(".json")]

    def plan_document(self, sweep: str) -> dict[str, Any]:
        """Return the plan of a sweep that was run into the store: see :meth:`kvray.planning.artefacts.Plan.to_json`.

        Raises InputError, which names the sweeps there are, or StoreError for a plan unreadable or of another version.
        """
        name = f"sweeps/{sweep}.json"
        data = self.read_document(name)
        if data is None:
            raise InputError(
                f"sweep {sweep!r}: not in the store {self.uri}; it has {', '.join(self.sweeps()) or 'no sweeps'}. "
                "Give one of these, or the path of a YAML file; kvray run adds its sweep"
            )
        try:
            document = dict(json.loads(data))
            if document["format"] != PLAN_FORMAT or not isinstance(document["artefacts"], list):
                raise ValueError(
                    f"found format {document['format']}; expected {PLAN_FORMAT}: use the kvray that wrote it"
                )
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{name} in {self.uri} is no plan document: {error!r}") from error
        return document

    def _check_document(self, name: str) -> None:
        if "/" not in name or name.split("/", 1)[0] in FOLDERS.values():
            raise StoreError(f"{name!r} is no document name: expected <folder>/<name> outside the artefacts' folders")

    def each(self, work: Callable[[_T], _U], items: Sequence[_T]) -> list[_U]:
        """Apply ``work`` to every item and keep their order; concurrently where each is a round trip."""
        if not self._files.remote or len(items) < 2:
            return [work(item) for item in items]
        with ThreadPoolExecutor(IN_FLIGHT) as pool:
            try:
                return list(pool.map(work, items))
            except KeyboardInterrupt:
                with self.hurry():  # else the threads would wait on
                    pool.shutdown(cancel_futures=True)
                raise
