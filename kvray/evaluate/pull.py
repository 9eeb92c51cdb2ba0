"""What one engine does: it pulls units of evaluation for as long as there is work. Knows no Ray.

Requests are one stream: the engine's window is filled from the next unit while the last answers of this one are being
written, and drains only where a model must be loaded first. A cell that fails (adapter without effect, dataset
unreadable) is told to the source and the others go on; an engine that dies takes the process with it, and what it held
is tried again.
"""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from kvray.errors import CellError, KvrayError
from kvray.evaluate import chunks
from kvray.evaluate.cells import Cells
from kvray.evaluate.committer import Chunk, Committer, Taken
from kvray.evaluate.engines.base import Engine, ModelError, Request, Serving
from kvray.evaluate.questions import engine_length
from kvray.evaluate.served import Models
from kvray.models.reference import load_tokenizer
from kvray.planning.work import Nothing, Source, Unit
from kvray.store.store import Store

TOLD_S = 1.0
"""Seconds between two reports of progress."""
BEAT_S = 5.0
"""Seconds without a whole answer after which the engine's steps are told instead."""


class Puller:
    """Pulls units from ``source`` until it ends, answers them by an engine of ``kind``, and commits their cells.

    Nothing of the engine is loaded before there is something to ask.
    """

    def __init__(
        self, source: Source, cells: Cells, store: Store, kind: type[Engine], serving: Serving, scratch: Path
    ) -> None:
        self._source = source
        self._cells = cells
        self._store = store
        self._kind = kind
        self._serving = serving
        self._scratch = scratch
        self._committer = Committer(store, source, cells)
        self._engine: Engine | None = None
        self._tokenizer: Any = None
        self._models: Models | None = None  # of a started engine
        self._length = 0
        self._held: Taken | None = None  # needs a model that can be loaded when the window is empty
        self._ended = False
        self._begun, self._waited, self._told = time.monotonic(), 0.0, 0.0

    def run(self) -> None:
        """Do units until the source ends, or one needs a longer engine.

        Raises KvrayError if the model cannot be served here, or the store cannot be written; any other exception is the
        engine's death. Commits stay.
        """
        try:
            while (taken := self._next(wait=True)) is not None:
                models = self._models or self._start(taken)
                if self._fits(taken) and self._usable(taken, models):
                    self._answer(taken, models)
        finally:
            self._committer.close()
            if self._engine:
                self._engine.close()

    def _next(self, wait: bool) -> Taken | None:
        """Return the next unit that asks something; None at the end, or if there is none now and no ``wait``."""
        while True:
            self._committer.check()
            if self._held:
                taken, self._held = self._held, None
                return taken
            unit = self._committer.again() or self._pull(wait)
            if unit is Nothing.LATER and wait:
                continue
            if isinstance(unit, Nothing):
                return None
            if found := self._prepared(unit):
                return found

    def _pull(self, wait: bool) -> Unit | Nothing:
        if not self._ended:
            asked = time.monotonic()
            given = self._source.take(self._models.holding() if self._models else (), wait)
            self._waited += time.monotonic() - asked
            if given is not Nothing.END:
                return given
            self._ended = True
        if wait:
            self._committer.check(wait=True)
        return (wait and self._committer.again()) or Nothing.END

    def _prepared(self, unit: Unit) -> Taken | None:
        """Return a unit with its requests made; if there are none, hand it on to be stored, and return None."""
        cell = self._cells[unit.artefact_id]
        try:
            questions = self._cells.questions(cell)
            indices = chunks.missing(self._store, cell.id, questions) if unit.chunks is None else unit.chunks
        except KvrayError as error:
            self._source.failed(unit, str(error))
            return None
        taken = Taken(unit, cell, questions, [Chunk(index, chunks.span(index, len(questions))) for index in indices])
        if not taken.chunks:
            self._committer.finish(taken)
            return None
        limit = self._open()
        try:
            questions.prepare(taken.rows, self._tokenizer, limit)
        except KvrayError as error:
            self._committer.fail(taken, str(error))
            return None
        if any(questions.requests[row] for row in taken.rows):
            return taken
        for chunk in taken.chunks:
            self._committer.store(taken, chunk, {"seconds": 0.0})
        return None

    def _open(self) -> int:
        """Make the engine, which loads nothing yet; return the tokens that the model takes, 0 if the engine counts."""
        if self._engine is None:
            self._engine = self._kind(self._serving)
            self._engine.on_step = self._beat
            self._tokenizer = None if self._kind.READS_TEXT else load_tokenizer(self._serving.base)
        return 0 if self._kind.READS_TEXT else self._engine.limit

    def _start(self, first: Taken) -> Models:
        """Start the engine for requests as long as any that is planned.

        The model's own limit would do only where memory is ample: vLLM starts on no GPU whose cache would not hold one
        request of that length (128K tokens of an 8B model are 16 GiB), and on a CPU the cache is sized by it.
        """
        limit, engine = self._open(), self._engine
        assert engine
        if not self._kind.READS_TEXT:
            needed = [self._cells.longest(self._tokenizer, limit), first.questions.needed(first.rows)]
            self._length = engine_length([*needed, self._source.length()], limit)
        engine.start(self._length)
        self._source.started(time.monotonic() - self._begun - self._waited)
        self._models = Models(self._store, engine, self._scratch)
        return self._models

    def _fits(self, taken: Taken) -> bool:
        """Return whether a unit's requests fit the engine; if not, give it back and take no more."""
        needed = 0 if self._kind.READS_TEXT else taken.questions.needed(taken.rows)
        if needed > self._length:
            self._source.give_back(taken.unit, needed)
            self._ended = True
        return needed <= self._length

    def _usable(self, taken: Taken, models: Models) -> bool:
        """Make a unit's model ready, while no request is under way; if it cannot be used, end the unit as failed."""
        prompts = [request.tokens for row in taken.rows for request in taken.questions.requests[row]]
        try:
            models.use(taken.cell, prompts)
        except KvrayError as error:
            self._committer.fail(taken, str(error))
        return not taken.failed

    def _beat(self) -> None:
        if time.monotonic() - self._told > BEAT_S:
            self._told = time.monotonic()
            self._source.beat()

    def _answer(self, first: Taken, models: Models) -> None:
        """Answer a unit, and all that follow without another model to load."""
        engine = self._engine
        assert engine
        clock = time.monotonic()
        for (taken, chunk, row, number), reply in engine.answer(self._requests(first, models, engine)):
            if isinstance(reply, CellError):
                # A missing model is not the fault of this row.
                name = "" if isinstance(reply, ModelError) else f"{taken.questions.name(row)}: "
                self._committer.fail(taken, f"{name}{reply}")
                continue
            chunk.replies[row][number] = reply
            chunk.open -= 1
            taken.done += None not in chunk.replies[row]
            now = time.monotonic()
            if now - self._told > TOLD_S:
                self._told = now
                self._source.progress(taken.unit, taken.done, engine.note)
            if not chunk.open:
                info = {"seconds": now - clock, "engine": engine.info(models.adapter(taken.cell))}
                clock = now
                self._committer.store(taken, chunk, info)

    def _requests(
        self, first: Taken, models: Models, engine: Engine
    ) -> Iterator[tuple[tuple[Taken, Chunk, int, int], Request]]:
        taken: Taken | None = first
        while taken:
            adapter = models.adapter(taken.cell)
            for chunk in taken.chunks:
                asked = {row: taken.questions.requests[row] for row in chunk.rows}
                chunk.replies = {row: [None] * len(requests) for row, requests in asked.items()}
                chunk.open = sum(map(len, asked.values()))
                if not chunk.open:
                    self._committer.store(taken, chunk, {"seconds": 0.0, "engine": engine.info(adapter)})
                for row, requests in asked.items():
                    for number, request in enumerate(requests):
                        if taken.failed:
                            break
                        yield (taken, chunk, row, number), replace(request, adapter=adapter)
            taken = self._next(wait=False)
            if taken and not models.ready(taken.cell):
                self._held, taken = taken, None
            elif taken and not self._fits(taken):
                taken = None
