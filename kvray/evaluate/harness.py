"""Benchmarks of lm-evaluation-harness on the engine of all other evaluations: one for a base and all its adapters.

A cell (one model, one benchmark) is kept chunk by chunk as every evaluation is, its rows are of the same schema, and
its manifest says which versions of which tasks were asked, with the harness's own aggregates beside ours.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kvray.artefact import Artefact
from kvray.base_model import load_tokenizer
from kvray.errors import CellError
from kvray.evaluate import chunks, harness_requests, harness_scores, harness_tasks
from kvray.evaluate import requests as lengths
from kvray.evaluate.adapters import Adapters
from kvray.evaluate.chunks import Labels
from kvray.evaluate.engine import Engine, Request
from kvray.evaluate.harness_requests import Encoder, Read, Reading
from kvray.evaluate.harness_tasks import Benchmark, Row
from kvray.evaluate.order import Chunk, Order, job_of, labels_of, note_failure
from kvray.evaluate.work import Worker
from kvray.store import Store
from kvray.tasks.base import RIGHT, WRONG
from kvray.tasks.lm_eval import LmEval


def run_cells(order: Order, store: Store, report: Callable[[int], None]) -> None:
    """Do an order whose cells are all benchmarks; arguments and errors as of :class:`kvray.evaluate.work.Worker`."""
    BenchmarkWorker(order, store, report).run()


def table(
    labels: Labels,
    benchmark: Benchmark,
    rows: Sequence[Row],
    prompts: Sequence[int],
    reads: Sequence[Sequence[Read]],
    facts: Mapping[str, Any],
) -> pa.Table:
    """Return the scored rows of one chunk, with everything that the harness measured of them in the chunk's facts.

    Args:
        labels: the constant columns.
        benchmark: what was asked.
        rows: the questions.
        prompts: tokens of each question's prompt.
        reads: what came back of each question's readings.
        facts: of this chunk (seconds, engine).

    Raises:
        CellError: the benchmark's metric is no score of a question.
    """
    given = [harness_requests.responses(row, each) for row, each in zip(rows, reads, strict=True)]
    scored = harness_scores.score(benchmark, rows, given)
    several = len(benchmark.subtasks) > 1
    columns: dict[str, Any] = {name: [value] * len(rows) for name, value in asdict(labels).items()}
    columns |= {name: [None] * len(rows) for name in ("position", "length", "depth", "condition")}
    columns |= {
        "example_id": [row.id for row in rows],
        "question_id": [row.id for row in rows],
        "units": [0] * len(rows),
        "subtask": [row.subtask if several else None for row in rows],
        "prompt_tokens": list(prompts),
        "cached_tokens": [each[0].cached_tokens if len(each) == 1 else None for each in reads],
        "output_tokens": [sum(one.output_tokens for one in each) for each in reads],
        "answer": [one.answer for one in scored],
        "references": [one.references for one in scored],
        "score": [one.score for one in scored],
        "outcome": [RIGHT if one.score == 1.0 else WRONG for one in scored],
        "finish_reason": [each[0].finish_reason for each in reads],
    }
    values: dict[str, dict[str, list[Any]]] = {}
    metrics: dict[str, str] = {}
    for row, one in zip(rows, scored, strict=True):
        metrics[row.subtask] = one.metric
        for key, value in one.values.items():
            values.setdefault(row.subtask, {}).setdefault(key, []).append(value)
    return chunks.with_facts(columns, {**facts, "values": values, "metrics": metrics})


def summarize(benchmark: Benchmark, tables: Sequence[pa.Table]) -> dict[str, Any]:
    """Return the facts of a benchmark's predictions.

    Returns:
        Those of all predictions, and ``harness``: lm_eval (version), benchmark, cut (questions whose prompt lost its
        beginning), system_left_out (chats whose system message the chat template refused), subtasks (version of the
        task, shots, metric of the score, questions there are and asked) and aggregates: the harness's own, of every
        subtask and group, by ``metric,filter``.
    """
    notes = [chunks.facts_of(each) for each in tables]
    values: dict[str, dict[str, list[Any]]] = {}
    metrics: dict[str, str] = {}
    for note in notes:
        metrics |= note["metrics"]
        for name, measured in note["values"].items():
            for key, each in measured.items():
                values.setdefault(name, {}).setdefault(key, []).extend(each)
    subtasks = {
        name: {
            "version": str(benchmark.subtasks[name].VERSION),
            "shots": benchmark.subtasks[name].get_config("num_fewshot"),
            "metric": metrics[name],
            "questions": len(benchmark.subtasks[name].eval_docs),
            "asked": max(len(each) for each in measured.values()),
        }
        for name, measured in values.items()
    }
    return chunks.summarize(tables) | {
        "harness": {
            "lm_eval": version("lm_eval"),
            "benchmark": benchmark.task.benchmark,
            "cut": sum(note["cut"] for note in notes),
            "system_left_out": benchmark.system_left_out,
            "subtasks": subtasks,
            "aggregates": harness_scores.aggregate(benchmark, values),
        }
    }


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
                self._benchmarks[key] = harness_tasks.load(task, load_tokenizer(self._order.base))
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
            reads[number] = harness_requests.read(reading, output)
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
                    params = harness_requests.params(one)
                    yield (chunk, row, number), Request(one.prompt, params, adapters.of(chunk.cell))

    def _finish_or_note(self, chunk: Chunk, seconds: float, engine_facts: dict[str, Any]) -> None:
        if chunk.cell.id in self._failed:
            return
        try:
            self._finish(chunk, seconds, engine_facts)
        except CellError as error:
            self._failed.add(chunk.cell.id)
            note_failure(self._store, chunk.cell.id, str(error))

    def _table(self, chunk: Chunk, facts: dict[str, Any]) -> pa.Table:
        span = self._span(chunk)
        benchmark = self._benchmark(chunk.cell)
        reads = [self._reads.pop((chunk.cell.id, chunk.index, row)) for row in span]
        cut = sum(any(one.cut for one in self._asked(chunk, row)) for row in span)
        return table(
            labels_of(self._order, chunk.cell),
            benchmark,
            [benchmark.rows[row] for row in span],
            [len(self._prompt(chunk, row)) for row in span],
            [[one for one in each if one is not None] for each in reads],
            {**facts, "cut": cut},
        )

    def _commit(self, cell: Artefact) -> None:
        benchmark = self._benchmark(cell)
        chunks.commit_if_whole(self._store, cell, benchmark.examples, lambda tables: summarize(benchmark, tables))


def _task(cell: Artefact) -> LmEval:
    task = job_of(cell).task
    if not isinstance(task, LmEval):
        raise TypeError(f"{cell.id} is no benchmark of lm-evaluation-harness")
    return task
