"""Benchmarks of lm-evaluation-harness on the engine of all other evaluations: one for a base and all its adapters.

A cell (one model, one benchmark) is kept chunk by chunk as every evaluation is, its rows are of the same schema, and
its manifest says which versions of which tasks were asked, with the harness's own aggregates beside ours.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kvray.errors import CellError
from kvray.evaluate import prompts as lengths
from kvray.evaluate.adapters import Adapters
from kvray.evaluate.chunks import Reply
from kvray.evaluate.engines.vllm import Engine, Request
from kvray.evaluate.lm_eval import requests, tasks
from kvray.evaluate.lm_eval import rows as harness_rows
from kvray.evaluate.lm_eval.requests import Encoder, Read, Reading
from kvray.evaluate.lm_eval.tasks import Benchmark
from kvray.evaluate.orders import Chunk, Order, job_of, labels_of
from kvray.evaluate.worker import Worker
from kvray.models.reference import load_tokenizer
from kvray.planning.artefacts import Artefact
from kvray.store import failures
from kvray.store.store import Store
from kvray.tasks.lm_eval import LmEval


def run_cells(order: Order, store: Store, report: Callable[[int], None]) -> None:
    """Do an order whose cells are all benchmarks; arguments and errors as of :class:`kvray.evaluate.worker.Worker`."""
    BenchmarkWorker(order, store, report).run()


class BenchmarkWorker(Worker):
    """Does one order of benchmarks in this process."""

    def __init__(self, order: Order, store: Store, report: Callable[[int], None]) -> None:
        """Take an order; arguments as of :class:`Worker`."""
        super().__init__(order, store, report)
        self._benchmarks: dict[str, Benchmark | CellError] = {}
        self._readings: dict[tuple[str, int], list[Reading]] = {}
        self._reads: dict[tuple[str, int, int], list[Read | None]] = {}
        self._failed: set[str] = set()

    def _read(self, cell: Artefact) -> None:
        task = _task(cell)
        key = task.model_dump_json()
        if key not in self._benchmarks:
            try:
                self._benchmarks[key] = tasks.load(task, load_tokenizer(self._order.base))
            except CellError as error:
                self._benchmarks[key] = error  # the other models' cells need not wait for the hub again
        self._benchmark(cell)

    def _benchmark(self, cell: Artefact) -> Benchmark:
        found = self._benchmarks[_task(cell).model_dump_json()]
        if isinstance(found, CellError):
            raise CellError(str(found))
        return found

    def _examples(self, cell: Artefact) -> pa.Table:
        return self._benchmark(cell).examples

    def _encode(self, work: list[Chunk]) -> list[Chunk]:
        tokenizer = load_tokenizer(self._order.base)

        def encode(cell: Artefact) -> None:
            task, rows = _task(cell), self._benchmark(cell).rows
            key = task.model_dump_json()
            mine = [row for chunk in work if chunk.cell is cell for row in self._span(chunk)]
            absent = [row for row in mine if (key, row) not in self._readings]
            encoder = Encoder(tokenizer, task, self._limit)
            self._readings |= {
                (key, row): made
                for row, made in zip(absent, encoder.encode([rows[row] for row in absent]), strict=True)
            }

        work = self._guarded(work, encode)
        needed = (len(one.prompt) + one.max_tokens for made in self._readings.values() for one in made)
        self._length = lengths.engine_length(needed, self._limit)
        return work

    def _asked(self, chunk: Chunk, row: int) -> list[Reading]:
        return self._readings[_task(chunk.cell).model_dump_json(), row]

    def _fitting(self, chunk: Chunk) -> Iterator[tuple[Chunk, int]]:
        for row in self._span(chunk):
            yield chunk, row

    def _prompt(self, chunk: Chunk, row: int) -> NDArray[np.int32]:
        return self._asked(chunk, row)[0].prompt

    def _stream(self, work: list[Chunk], engine: Engine, adapters: Adapters) -> None:
        left = {id(chunk): sum(len(self._asked(*key)) for key in self._fitting(chunk)) for chunk in work}
        clock = time.monotonic()
        for (chunk, row, number), output in engine.stream(self._requests(work, adapters)):
            reading = self._asked(chunk, row)[number]
            reads = self._reads.setdefault((chunk.cell.id, chunk.index, row), [None] * len(self._asked(chunk, row)))
            reads[number] = requests.read(reading, output)
            left[id(chunk)] -= 1
            if not left[id(chunk)]:
                now = time.monotonic()
                self._finish_or_note(chunk, now - clock, engine.facts)
                clock = now

    def _requests(self, work: list[Chunk], adapters: Adapters) -> Iterator[tuple[tuple[Chunk, int, int], Request]]:
        for chunk in work:
            for _, row in self._fitting(chunk):
                if chunk.cell.id in self._failed:
                    break
                for number, one in enumerate(self._asked(chunk, row)):
                    params = requests.params(one)
                    yield (chunk, row, number), Request(one.prompt, params, adapters.of(chunk.cell))

    def _finish_or_note(self, chunk: Chunk, seconds: float, engine_facts: dict[str, Any]) -> None:
        if chunk.cell.id in self._failed:
            return
        try:
            self._finish(chunk, seconds, engine_facts)
        except CellError as error:
            self._failed.add(chunk.cell.id)
            failures.note(self._store, chunk.cell.id, str(error))

    def _table(self, chunk: Chunk, facts: dict[str, Any]) -> pa.Table:
        span = self._span(chunk)
        benchmark = self._benchmark(chunk.cell)
        reads = [list(map(_whole, self._reads.pop((chunk.cell.id, chunk.index, row)))) for row in span]
        cut = sum(any(one.cut for one in self._asked(chunk, row)) for row in span)
        rows = [benchmark.rows[row] for row in span]
        return harness_rows.table(
            labels_of(self._order, chunk.cell),
            benchmark,
            rows,
            [_reply(len(self._prompt(chunk, row)), each) for row, each in zip(span, reads, strict=True)],
            [requests.responses(row, each) for row, each in zip(rows, reads, strict=True)],
            {**facts, "cut": cut},
        )

    def _commit(self, cell: Artefact) -> None:
        harness_rows.commit_if_whole(self._store, cell, self._benchmark(cell))


def _whole(read: Read | None) -> Read:
    if read is None:
        raise RuntimeError("a question was to be scored before all of its readings were there")
    return read


def _reply(prompt_tokens: int, reads: Sequence[Read]) -> Reply:
    """Return what a row tells of its readings; how much the cache served is untold where there were several."""
    cached = reads[0].cached_tokens if len(reads) == 1 else None
    return Reply(prompt_tokens, cached, sum(one.output_tokens for one in reads), None, reads[0].finish_reason)


def _task(cell: Artefact) -> LmEval:
    task = job_of(cell).task
    if not isinstance(task, LmEval):
        raise TypeError(f"{cell.id} is no benchmark of lm-evaluation-harness")
    return task
