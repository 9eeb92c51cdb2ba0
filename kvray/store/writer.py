"""Writing in the background: a stage goes on with its work while the store takes what it has made."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

import pyarrow as pa

from kvray.store.manifest import FileEntry
from kvray.store.store import Store

WAITING = 8  # files that may wait, in memory, before write waits itself


class Writer:
    """Writes files of artefacts that are not committed: one thread, in the order given, at most ``waiting`` held.

    The first error is raised by the next call, whatever that is, and once: what was given before it may be written or
    not, as its futures say. To be used by one thread, as a context manager, whose end waits for all files.
    """

    def __init__(self, store: Store, waiting: int = WAITING) -> None:
        self._store = store
        self._room = threading.BoundedSemaphore(waiting)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kvray-writer")
        self._pending: list[Future[FileEntry]] = []

    def write(self, artefact_id: str, name: str, data: pa.Table | bytes | Path) -> Future[FileEntry]:
        """Take a file, as :meth:`~kvray.store.store.Store.write`, and return its entry to come.

        Waits while there is no room. Raises the error of an earlier file (a StoreError of the place, say), and
        RuntimeError after :meth:`close`.
        """
        self._raise_failed()
        self._room.acquire()
        try:
            future = self._thread.submit(self._store.write, artefact_id, name, data, uncommitted=True)
        except BaseException:
            self._room.release()
            raise
        future.add_done_callback(lambda _: self._room.release())
        self._pending.append(future)
        return future

    def flush(self) -> None:
        """Wait until everything given is written; raises the first error."""
        for future in self._pending:
            future.exception()
        self._raise_failed()

    def close(self) -> None:
        """Flush, and take nothing more."""
        self._thread.shutdown()
        self._raise_failed()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is None:
            self.close()
        else:  # which says more than a failed write
            self._thread.shutdown()

    def _raise_failed(self) -> None:
        done = [future for future in self._pending if future.done()]
        self._pending = [future for future in self._pending if not future.done()]
        failed = next((error for future in done if (error := future.exception())), None)
        if failed is not None:
            raise failed
