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

from kvray.artefact import Artefact
from kvray.base_model import load_tokenizer
from kvray.errors import CellError, InputError, KvrayError
from kvray.evaluate import chunks, requests, settings
from kvray.evaluate.chunks import Labels
from kvray.evaluate.engine import Adapter, Engine, Question
from kvray.evaluate.order import Chunk, Order, dataset_of, job_of, model_directory, note_failure, real_rank, todo
from kvray.evaluate.probe import Probe, pick
from kvray.store import Store


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
        self._adapters: dict[str, Adapter] = {}
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
        settings.prepare_environment(self._order.gpus > 0, self._order.cpus)
        with tempfile.TemporaryDirectory(prefix="kvray-evaluate-") as scratch:
            cells = [cell for cell in self._order.cells if self._guard(cell, self._read)]
            work = todo(self._store, cells, self._data, self._order.part, self._order.parts)
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
        ranks: list[int] = []
        full: Path | None = None
        if order.full is not None:
            full = model_directory(self._store.fetch(order.full, scratch / "full"))
        else:
            work = self._guarded(work, lambda cell: self._fetch(cell, scratch, ranks))
        if not work:
            return
        chosen = settings.settings(order.base, order.runtime, order.gpus, full, ranks)
        settings.check_platform(chosen.gpu)
        self._encode(work, chosen)
        runnable = [key for chunk in work for key in self._fitting(chunk)]
        if not runnable:
            for chunk in work:
                self._finish(chunk, 0.0, {})
            return
        engine = Engine(chosen, self._length)
        if self._adapters:
            probe = Probe(engine, pick([self._prompt(chunk, row) for chunk, row in runnable]))
            checked: dict[str, str | None] = {}
            work = self._guarded(work, lambda cell: self._check(cell, engine, probe, checked))
        self._stream(work, engine)

    def _stream(self, work: list[Chunk], engine: Engine) -> None:
        open_rows = {id(chunk): sum(1 for _ in self._fitting(chunk)) for chunk in work}
        clock = time.monotonic()
        for chunk in work:
            if not open_rows[id(chunk)]:
                self._finish(chunk, 0.0, engine.facts)
        for (chunk, row), reply in engine.answer(self._questions(work)):
            chunk.replies[row] = reply
            open_rows[id(chunk)] -= 1
            if not open_rows[id(chunk)]:
                now = time.monotonic()
                self._finish(chunk, now - clock, engine.facts)
                clock = now

    def _questions(self, work: list[Chunk]) -> Iterator[tuple[tuple[Chunk, int], Question]]:
        for chunk in work:
            job = job_of(chunk.cell)
            adapter = self._adapters.get(job.finetune_id or "")
            for key in self._fitting(chunk):
                yield key, Question(self._prompt(*key), requests.decoding(job.task), adapter)

    def _finish(self, chunk: Chunk, seconds: float, engine_facts: dict[str, Any]) -> None:
        job, span = job_of(chunk.cell), self._span(chunk)
        replies = [chunk.replies.get(row) or chunks.too_long(len(self._prompt(chunk, row))) for row in span]
        examples = self._data[dataset_of(chunk.cell)].slice(span.start, len(span))
        facts: dict[str, Any] = {"seconds": seconds}
        if engine_facts:
            facts["engine"] = engine_facts
        table = chunks.build(self._labels(chunk.cell), job.task, examples, replies, facts)
        self._store.write_table(chunk.cell.id, chunks.chunk_name(chunk.index), table)
        chunk.replies.clear()
        self._left[chunk.cell.id] -= 1
        if not self._left[chunk.cell.id]:
            # Another engine may still owe chunks of this cell; then it commits.
            self._commit(chunk.cell)
        self._done += len(span)
        self._report(self._done)

    def _commit(self, cell: Artefact) -> None:
        chunks.commit_if_whole(self._store, cell, self._data[dataset_of(cell)])

    def _read(self, cell: Artefact) -> None:
        name = dataset_of(cell)
        if name not in self._data:
            self._data[name] = requests.ask_order(self._store.read_table(name))

    def _fetch(self, cell: Artefact, scratch: Path, ranks: list[int]) -> None:
        name = job_of(cell).finetune_id
        if name is None or name in self._adapters:
            return
        path = model_directory(self._store.fetch(name, scratch / name.rpartition("/")[2]))
        ranks.append(real_rank(path))
        self._adapters[name] = Adapter(name.rpartition("/")[2], len(self._adapters) + 1, path)

    def _check(self, cell: Artefact, engine: Engine, probe: Probe, checked: dict[str, str | None]) -> None:
        name = job_of(cell).finetune_id
        if name is None:
            return
        if name not in checked:
            try:
                engine.load(self._adapters[name])
                probe.check(self._adapters[name])
                checked[name] = None
            except CellError as error:
                checked[name] = str(error)
        problem = checked[name]
        if problem:
            raise CellError(problem)

    def _encode(self, work: list[Chunk], chosen: settings.Settings) -> None:
        """Tokenize the datasets of the chunks and find out what the model can take."""
        try:
            self._limit = settings.model_config(chosen).max_model_len
        except (ValueError, OSError) as error:
            raise InputError(f"base_model {self._order.base.name}: vLLM cannot serve it: {error}") from error
        tokenizer = load_tokenizer(self._order.base)
        needed: list[int] = []
        for chunk in work:
            job = job_of(chunk.cell)
            if dataset_of(chunk.cell) not in self._prompts:
                texts = self._data[dataset_of(chunk.cell)]["prompt"].to_pylist()
                self._prompts[dataset_of(chunk.cell)] = requests.encode(tokenizer, texts)
            for _, row in self._fitting(chunk):
                needed.append(len(self._prompt(chunk, row)) + job.task.MAX_OUTPUT_TOKENS)
        self._length = requests.engine_length(needed, self._limit)

    def _fitting(self, chunk: Chunk) -> Iterator[tuple[Chunk, int]]:
        most = job_of(chunk.cell).task.MAX_OUTPUT_TOKENS
        for row in self._span(chunk):
            if requests.fits(self._prompt(chunk, row), most, self._limit):
                yield chunk, row

    def _prompt(self, chunk: Chunk, row: int) -> NDArray[np.int32]:
        return self._prompts[dataset_of(chunk.cell)][row]

    def _span(self, chunk: Chunk) -> range:
        return chunks.span(chunk.index, self._data[dataset_of(chunk.cell)].num_rows)

    def _rows(self, cells: Sequence[Artefact]) -> int:
        """Return the rows of this part, by the deal of :func:`todo`."""
        dealt = rows = 0
        for cell in cells:
            total = self._data[dataset_of(cell)].num_rows
            for index in range(chunks.chunk_count(total)):
                rows += len(chunks.span(index, total)) if dealt % self._order.parts == self._order.part else 0
                dealt += 1
        return rows

    def _labels(self, cell: Artefact) -> Labels:
        job = job_of(cell)
        return Labels(
            sweep=self._order.sweeps.get(cell.id, ""),
            evaluation=job.evaluation,
            task=job.task.task,
            base_model=self._order.base.name,
            mixture=cell.labels.get("mixture"),
            finetune=cell.labels.get("finetune"),
            seed=cell.labels.get("seed"),
            adapter=job.finetune_id.rpartition("/")[2] if job.finetune_id else None,
        )

    def _guarded(self, work: list[Chunk], step: Callable[[Artefact], None]) -> list[Chunk]:
        """Take a step for every cell of the chunks once; return the chunks of the cells where it went well."""
        cells = {chunk.cell.id: chunk.cell for chunk in work}
        good = {name for name, cell in cells.items() if self._guard(cell, step)}
        return [chunk for chunk in work if chunk.cell.id in good]

    def _guard(self, cell: Artefact, step: Callable[[Artefact], None]) -> bool:
        try:
            step(cell)
        except KvrayError as error:
            note_failure(self._store, cell.id, str(error))
            return False
        return True
