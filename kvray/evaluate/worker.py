"""What one engine does: an order of cells, from committed artefacts to committed predictions. Knows no Ray.

A cell that cannot be done (adapter damaged or without effect, dataset unreadable) is noted as a document under
``failures/`` and the others go on; an engine that dies takes the process with it, and whoever ordered tries again.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kvray.errors import InputError, KvrayError
from kvray.evaluate import chunks, prompts
from kvray.evaluate.adapters import Adapters
from kvray.evaluate.engines import vllm_settings
from kvray.evaluate.engines.vllm import Engine, Question
from kvray.evaluate.orders import Chunk, Order, dataset_of, job_of, labels_of, model_directory, todo
from kvray.evaluate.probe import Probe, pick
from kvray.models.chat import prompts_of
from kvray.models.reference import load_tokenizer
from kvray.planning.artefacts import Artefact
from kvray.store import failures
from kvray.store.store import Store


class Worker:
    """Does one order in this process."""

    def __init__(self, order: Order, store: Store, report: Callable[[int], None]) -> None:
        """Take an order.

        Args:
            order: what to do.
            store: where everything is.
            report: told how many rows of this order are done, after every chunk.
        """
        self._order = order
        self._store = store
        self._report = report
        self._data: dict[str, pa.Table] = {}
        self._prompts: dict[str, list[NDArray[np.int32]]] = {}
        self._limit = 0
        self._length = 0
        self._done = 0
        self._left: Counter[str] = Counter()

    def run(self) -> None:
        """Do the order: answer what is missing and commit every cell that becomes whole.

        Raises:
            KvrayError: nothing of the order can be done (the model cannot be served here).
            Exception: the engine died; what was committed stays.
        """
        vllm_settings.prepare_environment(self._order.gpus > 0, self._order.cpus)
        with tempfile.TemporaryDirectory(prefix="kvray-evaluate-") as scratch:
            cells = [cell for cell in self._order.cells if self._guard(cell, self._read)]
            work = todo(self._store, cells, self._examples, self._order.part, self._order.parts)
            self._done = self._rows(cells) - sum(len(self._span(chunk)) for chunk in work)
            self._report(self._done)
            self._left = Counter(chunk.cell.id for chunk in work)
            for cell in cells:
                if not self._left[cell.id]:
                    self._commit(cell)
            if work:
                self._answer(work, Path(scratch))

    def _answer(self, work: list[Chunk], scratch: Path) -> None:
        order = self._order
        adapters = Adapters(self._store, scratch)
        full: Path | None = None
        if order.full is not None:
            full = model_directory(self._store.fetch(order.full, scratch / "full"))
        else:
            work = self._guarded(work, adapters.fetch)
        if not work:
            return
        chosen = vllm_settings.settings(order.base, order.runtime, order.gpus, full, adapters.ranks)
        vllm_settings.check_platform(chosen.gpu)
        try:
            self._limit = vllm_settings.model_config(chosen).max_model_len
        except (ValueError, OSError) as error:
            raise InputError(f"base_model {self._order.base.name}: vLLM cannot serve it: {error}") from error
        work = self._encode(work)
        runnable = [key for chunk in work for key in self._fitting(chunk)]
        if not runnable:
            for chunk in work:
                self._finish(chunk, 0.0, {})
            return
        engine = Engine(chosen, self._length)
        if adapters:
            probe = Probe(engine, pick([self._prompt(chunk, row) for chunk, row in runnable]))
            work = self._guarded(work, lambda cell: adapters.check(cell, engine, probe))
        self._stream(work, engine, adapters)

    def _stream(self, work: list[Chunk], engine: Engine, adapters: Adapters) -> None:
        open_rows = {id(chunk): sum(1 for _ in self._fitting(chunk)) for chunk in work}
        clock = time.monotonic()
        for chunk in work:
            if not open_rows[id(chunk)]:
                self._finish(chunk, 0.0, engine.facts)
        for (chunk, row), reply in engine.answer(self._questions(work, adapters)):
            chunk.replies[row] = reply
            open_rows[id(chunk)] -= 1
            if not open_rows[id(chunk)]:
                now = time.monotonic()
                self._finish(chunk, now - clock, engine.facts)
                clock = now

    def _questions(self, work: list[Chunk], adapters: Adapters) -> Iterator[tuple[tuple[Chunk, int], Question]]:
        for chunk in work:
            decoding = prompts.decoding(job_of(chunk.cell).task)
            for key in self._fitting(chunk):
                yield key, Question(self._prompt(*key), decoding, adapters.of(chunk.cell))

    def _finish(self, chunk: Chunk, seconds: float, engine_facts: dict[str, Any]) -> None:
        facts: dict[str, Any] = {"seconds": seconds}
        if engine_facts:
            facts["engine"] = engine_facts
        self._store.write_table(chunk.cell.id, chunks.chunk_name(chunk.index), self._table(chunk, facts))
        chunk.replies.clear()
        self._left[chunk.cell.id] -= 1
        if not self._left[chunk.cell.id]:
            # Another engine may still owe chunks of this cell; then it commits.
            self._commit(chunk.cell)
        self._done += len(self._span(chunk))
        self._report(self._done)

    def _table(self, chunk: Chunk, facts: dict[str, Any]) -> pa.Table:
        """Return the scored rows of a chunk whose replies are all there."""
        span = self._span(chunk)
        replies = [chunk.replies.get(row) or chunks.too_long(len(self._prompt(chunk, row))) for row in span]
        examples = self._examples(chunk.cell).slice(span.start, len(span))
        return chunks.build(labels_of(self._order, chunk.cell), job_of(chunk.cell).task, examples, replies, facts)

    def _commit(self, cell: Artefact) -> None:
        chunks.commit_if_whole(self._store, cell, self._examples(cell))

    def _examples(self, cell: Artefact) -> pa.Table:
        """Return what a cell asks, in asking order; it has been read."""
        return self._data[dataset_of(cell)]

    def _read(self, cell: Artefact) -> None:
        name = dataset_of(cell)
        if name not in self._data:
            self._data[name] = prompts.ask_order(self._store.read_table(name))

    def _encode(self, work: list[Chunk]) -> list[Chunk]:
        """Tokenize what the chunks ask, find out how long the engine must be; return the chunks that can be asked."""
        tokenizer = load_tokenizer(self._order.base)
        needed: list[int] = []
        for chunk in work:
            name = dataset_of(chunk.cell)
            if name not in self._prompts:
                self._prompts[name] = prompts.encode(tokenizer, prompts_of(self._data[name]))
            for _, row in self._fitting(chunk):
                needed.append(len(self._prompt(chunk, row)) + job_of(chunk.cell).task.MAX_OUTPUT_TOKENS)
        self._length = prompts.engine_length(needed, self._limit)
        return work

    def _fitting(self, chunk: Chunk) -> Iterator[tuple[Chunk, int]]:
        most = job_of(chunk.cell).task.MAX_OUTPUT_TOKENS
        for row in self._span(chunk):
            if prompts.fits(self._prompt(chunk, row), most, self._limit):
                yield chunk, row

    def _prompt(self, chunk: Chunk, row: int) -> NDArray[np.int32]:
        return self._prompts[dataset_of(chunk.cell)][row]

    def _span(self, chunk: Chunk) -> range:
        return chunks.span(chunk.index, self._examples(chunk.cell).num_rows)

    def _rows(self, cells: Sequence[Artefact]) -> int:
        """Return the rows of this part, by the deal of :func:`todo`."""
        dealt = rows = 0
        for cell in cells:
            total = self._examples(cell).num_rows
            for index in range(chunks.chunk_count(total)):
                rows += len(chunks.span(index, total)) if dealt % self._order.parts == self._order.part else 0
                dealt += 1
        return rows

    def _guarded(self, work: list[Chunk], step: Callable[[Artefact], None]) -> list[Chunk]:
        """Take a step for every cell of the chunks once; return the chunks of the cells where it went well."""
        cells = {chunk.cell.id: chunk.cell for chunk in work}
        good = {name for name, cell in cells.items() if self._guard(cell, step)}
        return [chunk for chunk in work if chunk.cell.id in good]

    def _guard(self, cell: Artefact, step: Callable[[Artefact], None]) -> bool:
        try:
            step(cell)
        except KvrayError as error:
            failures.note(self._store, cell.id, str(error))
            return False
        return True
