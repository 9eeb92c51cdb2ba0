"""What one engine does: it answers an assignment of cells and commits their artefacts. Knows no Ray.

One loop serves every engine and all that is asked. A cell that fails (adapter without effect, dataset unreadable) is
noted and the others go on; an engine that dies takes the process with it, and whoever assigned the work tries again.
"""

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kvray.console import Advance
from kvray.errors import CellError, KvrayError
from kvray.evaluate import chunks
from kvray.evaluate.adapters import Adapters, finetune_of, model_directory
from kvray.evaluate.assignments import Assignment
from kvray.evaluate.engines.base import Engine, ModelError, Reply, Request, Serving, engine_class
from kvray.evaluate.questions import DatasetQuestions, Questions, WritingPrompts, engine_length
from kvray.models.reference import load_tokenizer, tokenizer_place
from kvray.models.tokenizer import token_counter
from kvray.planning.artefacts import Artefact, PredictionsJob, WritingJob
from kvray.store import failures
from kvray.store.store import Store

Report = Callable[[int, int, str], None]
"""Takes the rows of an assignment that are done, all rows that it has, and a note of the engine."""


@dataclass
class Tally:
    """The progress of several assignments on one line, from what their workers report; at first it shows ``waiting``.

    An assignment counts with its planned rows, an estimate for lm_eval benchmarks, until its worker has counted them.
    """

    advance: Advance
    planned: Sequence[float]
    unit: str = "rows"
    waiting: str = "an engine starts"

    def __post_init__(self) -> None:
        self._totals = list(self.planned)
        self._done: dict[int, int] = {}
        self._kept = 0
        self._started = time.monotonic()

    def report(self, number: int, done: int, total: int, note: str = "") -> None:
        """Take what a worker reports: ``done`` of ``total`` rows of an assignment."""
        if number not in self._done:
            self._kept += done  # of an earlier run
        self._done[number], self._totals[number] = done, total
        answered = sum(self._done.values()) - self._kept
        rate = f"{max(answered, 0) / max(time.monotonic() - self._started, 1e-9):.1f} {self.unit}/s"
        self.show(", ".join(filter(None, [rate if answered else self.waiting, note])))

    def show(self, note: str) -> None:
        self.advance(sum(self._done.values()), note, round(sum(self._totals)))


@dataclass
class Chunk:
    """A chunk being answered: per row a reply to each request, None until it comes; ``open`` requests are left."""

    cell: Artefact
    questions: Questions
    index: int
    rows: range
    replies: dict[int, list[Reply | None]] = field(default_factory=dict)
    open: int = 0


class Worker:
    """Does one assignment in this process; reports at the start and after every chunk, of an API after every row."""

    def __init__(self, assignment: Assignment, store: Store, report: Report) -> None:
        self._assignment = assignment
        self._store = store
        self._report = report
        self._by_row = assignment.base.api
        self._kind = engine_class(assignment.base, assignment.runtime)
        self._loaded: dict[tuple[str | None, str], Questions | KvrayError] = {}
        self._questions: dict[str, Questions] = {}
        self._failed: set[str] = set()
        self._left: Counter[str] = Counter()
        self._done = self._total = 0

    def run(self) -> None:
        """Answer what is missing and commit every cell that becomes whole.

        Raises KvrayError if the model cannot be served here; any other exception is the engine's death. Commits stay.
        """
        given = self._assignment
        self._kind.prepare(given.gpus, given.cpus)
        self._try(given.cells, self._read)
        cells = [cell for cell in given.cells if cell.id in self._questions]
        every = [
            Chunk(cell, questions, index, chunks.span(index, len(questions)))
            for cell, questions in ((cell, self._questions[cell.id]) for cell in cells)
            for index in range(chunks.chunk_count(len(questions)))
        ]
        # Dealt round over all cells, so that parts differ by one chunk at most, whatever the cells' sizes.
        ours = every[given.part :: given.parts]
        absent = [each for each in ours if chunks.read(self._store, each.cell.id, each.index, each.questions) is None]
        self._total = sum(len(chunk.rows) for chunk in ours)
        self._done = self._total - sum(len(chunk.rows) for chunk in absent)
        self._tell()
        self._left = Counter(chunk.cell.id for chunk in absent)
        for cell in cells:
            if not self._left[cell.id]:
                chunks.commit_if_whole(self._store, cell, self._questions[cell.id])
        if absent:
            with tempfile.TemporaryDirectory(prefix="kvray-evaluate-") as scratch:
                self._answer(absent, Path(scratch))

    def _read(self, cell: Artefact) -> None:
        """Read what a cell asks; cells that ask the same share it, and its error."""
        job = cell.params
        if not isinstance(job, WritingJob | PredictionsJob):
            raise TypeError(f"{cell.id} asks nothing")
        key = (job.dataset_id if isinstance(job, PredictionsJob) else None), job.task.model_dump_json()
        if key not in self._loaded:
            try:
                self._loaded[key] = self._load(cell, job)
            except KvrayError as error:
                self._loaded[key] = error
        loaded = self._loaded[key]
        if isinstance(loaded, KvrayError):
            raise loaded
        self._questions[cell.id] = loaded

    def _load(self, cell: Artefact, job: WritingJob | PredictionsJob) -> Questions:
        base = self._assignment.base
        if isinstance(job, WritingJob):
            return WritingPrompts(job.task, token_counter(self._assignment.counted_by or base))
        if job.dataset_id is not None:
            return DatasetQuestions(self._store.read_table(job.dataset_id), job.task, cell.recipe.get("system_message"))
        from kvray.evaluate.lm_eval.questions import BenchmarkQuestions

        tokenizer = None if self._kind.READS_TEXT else load_tokenizer(base)
        return BenchmarkQuestions(job.task, tokenizer, tokenizer_place(base))

    def _answer(self, absent: list[Chunk], scratch: Path) -> None:
        given, store = self._assignment, self._store
        weights = model_directory(store.fetch(given.full, scratch / "full")) if given.full else None
        models = len({finetune_of(cell) for cell in given.cells})
        engine = self._kind(Serving(given.base, weights, given.runtime, given.gpus, given.cpus, models))
        adapters = Adapters(store, engine, scratch)
        if not weights:
            absent = self._guarded(absent, adapters.fetch)
        if not absent:
            return
        tokenizer, limit = (None, 0) if engine.READS_TEXT else (load_tokenizer(given.base), engine.limit)

        def prepare(cell: Artefact) -> None:
            rows = (row for chunk in absent if chunk.cell.id == cell.id for row in chunk.rows)
            self._questions[cell.id].prepare(rows, tokenizer, limit)

        absent = self._guarded(absent, prepare)
        requests = [request for chunk in absent for row in chunk.rows for request in chunk.questions.requests[row]]
        if not requests:
            for chunk in absent:
                self._finish(chunk, {"seconds": 0.0})
            return
        with closing(engine):
            engine.start(engine_length((len(each.tokens) + each.max_tokens for each in requests), limit))
            adapters.load([request.tokens for request in requests])
            absent = self._guarded(absent, adapters.of)
            self._stream(absent, engine, adapters)

    def _stream(self, absent: Iterable[Chunk], engine: Engine, adapters: Adapters) -> None:
        clock = time.monotonic()
        for (chunk, row, number), reply in engine.answer(self._requests(absent, engine, adapters)):
            if isinstance(reply, CellError):
                # A missing model is not the fault of this row.
                row_name = "" if isinstance(reply, ModelError) else f"{chunk.questions.name(row)}: "
                self._fail(chunk.cell, f"{row_name}{reply}")
                continue
            chunk.replies[row][number] = reply
            chunk.open -= 1
            if self._by_row and None not in chunk.replies[row]:
                self._done += 1
                self._tell(engine.note)
            if not chunk.open:
                seconds = time.monotonic() - clock
                clock += seconds
                self._finish(chunk, {"seconds": seconds, "engine": engine.info(adapters.of(chunk.cell))}, engine.note)

    def _requests(
        self, absent: Iterable[Chunk], engine: Engine, adapters: Adapters
    ) -> Iterator[tuple[tuple[Chunk, int, int], Request]]:
        for chunk in absent:
            adapter = adapters.of(chunk.cell)
            asked = {row: chunk.questions.requests[row] for row in chunk.rows}
            chunk.replies = {row: [None] * len(requests) for row, requests in asked.items()}
            chunk.open = sum(map(len, asked.values()))
            if not chunk.open:
                self._finish(chunk, {"seconds": 0.0, "engine": engine.info(adapter)})
            for row, requests in asked.items():
                for number, request in enumerate(requests):
                    if chunk.cell.id in self._failed:
                        break
                    yield (chunk, row, number), replace(request, adapter=adapter)

    def _finish(self, chunk: Chunk, info: dict[str, Any], note: str = "") -> None:
        cell, questions = chunk.cell, chunk.questions
        replies = [[reply for reply in chunk.replies.get(row, []) if reply is not None] for row in chunk.rows]
        try:
            table = questions.table(chunk.rows, replies, self._assignment.labels(cell), info)
        except CellError as error:
            self._fail(cell, str(error))
            return
        self._store.write(cell.id, chunks.chunk_name(chunk.index), table)
        chunk.replies = {}
        self._left[cell.id] -= 1
        if not self._left[cell.id]:
            # Another engine may still owe chunks of this cell; then it commits.
            chunks.commit_if_whole(self._store, cell, questions)
        self._done += len(chunk.rows) - (sum(map(bool, replies)) if self._by_row else 0)
        self._tell(note)

    def _tell(self, note: str = "") -> None:
        self._report(self._done, self._total, note)

    def _try(self, cells: Iterable[Artefact], step: Callable[[Artefact], object]) -> None:
        for cell in cells:
            try:
                step(cell)
            except KvrayError as error:
                self._fail(cell, str(error))

    def _guarded(self, absent: list[Chunk], step: Callable[[Artefact], object]) -> list[Chunk]:
        """Take a step once for every cell; return the chunks of the cells where it went well."""
        self._try({chunk.cell.id: chunk.cell for chunk in absent}.values(), step)
        return [chunk for chunk in absent if chunk.cell.id not in self._failed]

    def _fail(self, cell: Artefact, error: str) -> None:
        if cell.id not in self._failed:
            self._failed.add(cell.id)
            failures.note(self._store, cell.id, error)
