"""Scores and stores answered chunks and commits whole cells, in a thread of its own: the engine waits for neither."""

import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from queue import Empty, SimpleQueue
from typing import Any

import pyarrow as pa

from kvray.errors import KvrayError
from kvray.evaluate import chunks
from kvray.evaluate.cells import Cells
from kvray.evaluate.engines.base import Reply
from kvray.evaluate.questions import Questions
from kvray.planning.artefacts import Artefact
from kvray.planning.work import Source, Unit
from kvray.store.manifest import FileEntry
from kvray.store.store import Store

TABLES = 128
"""Tables of this engine's chunks kept for the commit of their cells (some 100 KB each); others are read again."""
WAITING = 8
"""Chunks that may wait for the store before the engine waits, too."""


@dataclass
class Chunk:
    """A chunk being answered: per row a reply to each request, None until it comes; ``open`` requests are left."""

    index: int
    rows: range
    replies: dict[int, list[Reply | None]] = field(default_factory=dict)
    open: int = 0


@dataclass(eq=False)
class Taken:
    """A unit in work: ``done`` rows are answered, ``entries`` are its stored chunks, ``failed`` that it ended so."""

    unit: Unit
    cell: Artefact
    questions: Questions
    chunks: list[Chunk]
    done: int = 0
    entries: list[FileEntry] = field(default_factory=list)
    failed: bool = False

    @property
    def rows(self) -> list[int]:
        return [row for chunk in self.chunks for row in chunk.rows]


class Committer:
    """Ends units in their source: by their last chunk stored, by their cell's commit, or as failed."""

    def __init__(self, store: Store, source: Source, cells: Cells) -> None:
        self._store = store
        self._source = source
        self._cells = cells
        self._tables: OrderedDict[tuple[str, int], tuple[pa.Table, FileEntry]] = OrderedDict()
        self._again: SimpleQueue[Unit] = SimpleQueue()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kvray-commit")
        self._waiting: deque[Future[None]] = deque()
        self._failing = threading.Lock()
        self._broken = False

    def store(self, taken: Taken, chunk: Chunk, info: dict[str, Any]) -> None:
        """Store a chunk with all its replies, and end its unit with the last one; see :meth:`check` for errors."""
        self._submit(self._put, taken, chunk, info)

    def finish(self, taken: Taken) -> None:
        """End a unit of which nothing is to be answered."""
        self._submit(self._finish, taken)

    def fail(self, taken: Taken, error: str) -> None:
        """End a unit as failed, once."""
        with self._failing:
            if taken.failed:
                return
            taken.failed = True
        self._source.failed(taken.unit, error)

    def again(self) -> Unit | None:
        """Return a unit with the chunks of its cell that turned out to be missing or unreadable, if there is one."""
        try:
            return self._again.get_nowait()
        except Empty:
            return None

    def check(self, wait: bool = False) -> None:
        """Raise what went wrong in the thread, a source out of reach; ``wait`` for all that it has to do."""
        while self._waiting and (wait or self._waiting[0].done()):
            self._waiting.popleft().result()

    def close(self) -> None:
        """Store what was answered, also when the engine has died; nothing more after the first error."""
        self._thread.shutdown()

    def _submit(self, step: Callable[..., None], *given: Any) -> None:
        self._waiting.append(self._thread.submit(self._unless_broken, step, *given))
        while len(self._waiting) > WAITING:
            self._waiting.popleft().result()
        self.check()

    def _unless_broken(self, step: Callable[..., None], *given: Any) -> None:
        if not self._broken:
            self._broken = True
            step(*given)
            self._broken = False

    def _put(self, taken: Taken, chunk: Chunk, info: dict[str, Any]) -> None:
        replies = [[reply for reply in chunk.replies.get(row, []) if reply is not None] for row in chunk.rows]
        chunk.replies = {}
        if taken.failed:
            return
        try:
            table = taken.questions.table(chunk.rows, replies, self._cells.labels(taken.cell), info)
            table, entry = self._create(taken, chunk.index, table)
        except KvrayError as error:
            self.fail(taken, str(error))
            return
        self._tables[taken.cell.id, chunk.index] = table, entry
        while len(self._tables) > TABLES:
            self._tables.popitem(last=False)
        taken.entries.append(entry)
        if len(taken.entries) < len(taken.chunks):
            self._source.saved(taken.unit, chunk.index, entry)
        else:
            self._finish(taken)

    def _create(self, taken: Taken, index: int, table: pa.Table) -> tuple[pa.Table, FileEntry]:
        """Store a chunk, or take the one that another run has stored meanwhile, which took this one for dead."""
        cell, name = taken.cell.id, chunks.chunk_name(index)
        if (entry := self._store.create(cell, name, table)) is not None:
            return table, entry
        stored = chunks.read(self._store, cell, index, taken.questions)
        if stored is not None and (entry := self._store.entry(cell, name)) is not None:
            return stored, entry
        return table, self._store.write(cell, name, table)  # not what is asked, or unreadable

    def _finish(self, taken: Taken) -> None:
        if taken.failed or (stored := self._source.finish(taken.unit, taken.entries)) is None:
            return
        entries = {entry.name: entry for entry in stored}
        whole, lacking = [], []
        try:
            for index in range(chunks.chunk_count(len(taken.questions))):
                found = self._stored(taken, index, entries.get(chunks.chunk_name(index)))
                if found:
                    whole.append(found)
                else:
                    lacking.append(index)
            if lacking:
                self._again.put(replace(taken.unit, chunks=tuple(lacking), rows=0))
                return
            tables, files = zip(*whole, strict=True)
            chunks.commit(self._store, taken.cell, taken.questions, tables, files)
        except KvrayError as error:
            self.fail(taken, str(error))
            return
        for index in range(len(whole)):
            self._tables.pop((taken.cell.id, index), None)
        self._source.committed(taken.unit)

    def _stored(self, taken: Taken, index: int, entry: FileEntry | None) -> tuple[pa.Table, FileEntry] | None:
        """Return a chunk of a cell, from memory if this engine made it; None if it is missing or not what is asked."""
        kept = self._tables.get((taken.cell.id, index))
        if kept and entry in (None, kept[1]):
            return kept
        table = chunks.read(self._store, taken.cell.id, index, taken.questions)
        if table is None:
            return None
        entry = entry or self._store.entry(taken.cell.id, chunks.chunk_name(index))
        return (table, entry) if entry else None
