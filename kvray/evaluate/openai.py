"""Evaluation of models behind an OpenAI-compatible API, from the driver: no Ray, no tokenizer, no chat template here.

Predictions are those of an engine of our own in every respect but who answers: the same rows in the same chunks, kept
and found again after a kill. A cell that cannot be done is noted and the others go on; what would stop all of them
(a wrong key, a server that is not there) ends the run at once.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa

from kvray.console import Advance, track
from kvray.errors import CellError, KvrayError
from kvray.evaluate import chunks
from kvray.evaluate import prompts as requests
from kvray.evaluate.chunks import Reply
from kvray.evaluate.engines.chat import Ask, Chat, NoModelError
from kvray.evaluate.job import outcome, sweeps_of
from kvray.evaluate.lm_eval import api as harness_api
from kvray.evaluate.lm_eval import rows as harness_rows
from kvray.evaluate.lm_eval.tasks import Benchmark
from kvray.evaluate.orders import Chunk, Order, dataset_of, job_of, labels_of, todo
from kvray.evaluate.prompts import Decoding
from kvray.models.openai import MODEL_FILE, Api, ApiError, run_async
from kvray.models.reference import BaseModelRef
from kvray.planning.artefacts import Artefact
from kvray.store import failures
from kvray.store.store import Outcome, Store
from kvray.sweep.model import Runtime


def evaluate(artefacts: Sequence[Artefact], store: Store, base: BaseModelRef, runtime: Runtime) -> list[Outcome]:
    """Make predictions artefacts: ask the API, score, commit.

    Args:
        artefacts: predictions whose dataset and finetune (by :func:`kvray.finetune.openai.finetune`) are committed.
        store: where everything is.
        base: the base model, with ``base.api``.
        runtime: where the API is, requests at a time, retries.

    Returns:
        One outcome per artefact, in order; a failed one leaves ``failures/<id>.json`` in the store.

    Raises:
        InputError: there is no key, or no such URL.
        ApiError: the API serves nothing of this; what was answered stays.
    """
    if not artefacts:
        return []
    api = Api(runtime.api_base_url, runtime.api_timeout_s, runtime.api_retries)
    for artefact in artefacts:
        failures.delete(store, artefact.id)
    order = Order(
        base=base,
        full=None,
        cells=tuple(artefacts),
        sweeps=sweeps_of(store, {artefact.id for artefact in artefacts}),
        part=0,
        parts=1,
        runtime=runtime,
        gpus=0,
        cpus=0,
    )
    rows = sum(artefact.rows for artefact in artefacts)
    with track("evaluate", rows, "rows") as advance, tempfile.TemporaryDirectory(prefix="kvray-endpoint-") as scratch:
        run_async(_Examination(order, store, api, advance, Path(scratch)).run())
    return [outcome(artefact, store, [], []) for artefact in artefacts]


def replies(
    ref: BaseModelRef,
    prompts: Sequence[str],
    max_tokens: int,
    runtime: Runtime,
    *,
    stop: Sequence[str] = (),
    system: str | None = None,
) -> list[Reply]:
    """Return a reply to each prompt, in order, ``too_long`` where one does not fit.

    Args:
        ref: a model with ``ref.api``.
        prompts: user messages.
        max_tokens: of each answer.
        runtime: where the API is, requests at a time, retries.
        stop: texts that end an answer.
        system: the message before each prompt; None for none.

    Raises:
        InputError: there is no key, or no such URL.
        ApiError: the API serves nothing of this.
        CellError: a prompt cannot be answered, or there is no such model.
    """
    api = Api(runtime.api_base_url, runtime.api_timeout_s, runtime.api_retries)
    found: list[Reply | None] = [None] * len(prompts)
    waiting = iter(enumerate(prompts))
    decoding = Decoding(max_tokens, tuple(stop))

    async def work(chat: Chat) -> None:
        for at, prompt in waiting:
            found[at] = await chat.ask(Ask(ref.location, prompt, decoding, system))

    async def run() -> None:
        async with api:
            chat = Chat(api)
            await _together([work(chat) for _ in range(min(runtime.api_concurrency, len(prompts)))])

    run_async(run())
    return [reply for reply in found if reply is not None]


async def _together(work: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Run coroutines side by side; the first that fails ends the others, and its error is raised bare."""
    try:
        async with asyncio.TaskGroup() as group:
            for one in work:
                group.create_task(one)
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None


@dataclass
class _Row:
    """A row to be asked, with what it takes to finish its chunk."""

    chunk: Chunk
    at: int
    ask: Ask
    examples: pa.Table


class _Examination:
    """All cells of one call: which rows are still to be asked, and where their replies go."""

    def __init__(self, order: Order, store: Store, api: Api, advance: Advance, scratch: Path) -> None:
        self._order = order
        self._store = store
        self._api = api
        self._advance = advance
        self._scratch = scratch
        self._failed: set[str] = set()
        self._models = {job_of(cell).finetune_id for cell in order.cells}
        self._data: tuple[str, pa.Table] | None = None
        self._benchmarks: dict[str, Benchmark] = {}
        self._left: dict[str, int] = {}
        self._kept = self._answered = 0
        self._started = self._clock = time.monotonic()

    async def run(self) -> None:
        """Ask everything that has no chunk yet.

        Raises:
            ApiError: the API serves nothing of this.
        """
        rows = self._rows()
        async with self._api:
            chat = Chat(self._api)
            await _together([self._work(rows, chat) for _ in range(self._order.runtime.api_concurrency)])

    def _rows(self) -> Iterator[_Row]:
        """Yield what is to be asked, cell by cell; taken lazily, so that few datasets are held at a time."""
        for cell in self._order.cells:
            try:
                examples, model = self._examples(cell), self._model(cell)
            except KvrayError as error:
                self._fail(cell, str(error))
                continue
            work = todo(self._store, [cell], self._examples, 0, 1)
            self._left[cell.id] = len(work)
            self._kept += examples.num_rows - sum(len(chunks.span(one.index, examples.num_rows)) for one in work)
            self._tell()
            if not work:
                self._commit(cell, examples)
            system = cell.recipe.get("system_message")
            prompts, tokens = examples["prompt"], examples["prompt_tokens"]
            for chunk in work:
                for at in chunks.span(chunk.index, examples.num_rows):
                    if cell.id in self._failed:
                        break
                    ask = Ask(model, prompts[at].as_py(), self._decoding(cell, at), system, tokens[at].as_py())
                    yield _Row(chunk, at, ask, examples)

    async def _work(self, rows: Iterator[_Row], chat: Chat) -> None:
        for row in rows:
            cell = row.chunk.cell
            try:
                reply = await chat.ask(row.ask)
            except NoModelError as error:
                if len(self._models) == 1:
                    raise ApiError(str(error)) from None
                self._fail(cell, str(error))
                continue
            except CellError as error:
                example = row.examples["example_id"][row.at].as_py()
                self._fail(cell, f"example {example}: {error}")
                continue
            row.chunk.replies[row.at] = reply
            self._answered += 1
            self._tell()
            if len(row.chunk.replies) == len(chunks.span(row.chunk.index, row.examples.num_rows)):
                self._finish(row, chat)

    def _finish(self, row: _Row, chat: Chat) -> None:
        """Write a chunk whose last reply came, and commit its cell if it was the last chunk."""
        chunk, examples = row.chunk, row.examples
        span = chunks.span(chunk.index, examples.num_rows)
        now = time.monotonic()
        engine = {
            "api": self._api.address.url,
            "model": row.ask.model,
            "served": sorted(chat.served[row.ask.model]),
            "client": f"openai {version('openai')}",
        }
        labels, replies = labels_of(self._order, chunk.cell), [chunk.replies[at] for at in span]
        facts = {"seconds": now - self._clock, "engine": engine}
        self._clock = now
        if job_of(chunk.cell).task.BRINGS_EXAMPLES:
            table = chunks.build(labels, job_of(chunk.cell).task, examples.slice(span.start, len(span)), replies, facts)
        else:
            try:
                table = harness_api.table(labels, self._benchmark(chunk.cell), span, replies, facts)
            except CellError as error:
                self._fail(chunk.cell, str(error))
                return
        self._store.write_table(chunk.cell.id, chunks.chunk_name(chunk.index), table)
        chunk.replies.clear()
        self._left[chunk.cell.id] -= 1
        if not self._left[chunk.cell.id]:
            self._commit(chunk.cell, examples)

    def _commit(self, cell: Artefact, examples: pa.Table) -> None:
        if job_of(cell).task.BRINGS_EXAMPLES:
            chunks.commit_if_whole(self._store, cell, examples)
        else:
            harness_rows.commit_if_whole(self._store, cell, self._benchmark(cell))

    def _examples(self, cell: Artefact) -> pa.Table:
        """Return what a cell asks, in asking order; the last dataset is kept, since many cells ask the same."""
        if not job_of(cell).task.BRINGS_EXAMPLES:
            return harness_api.examples(self._benchmark(cell))
        name = dataset_of(cell)
        if self._data is None or self._data[0] != name:
            self._data = name, requests.ask_order(self._store.read_table(name))
        return self._data[1]

    def _benchmark(self, cell: Artefact) -> Benchmark:
        """Return a cell's benchmark of lm-evaluation-harness; each is loaded once, for whichever model it is asked."""
        key = job_of(cell).task.model_dump_json()
        if key not in self._benchmarks:
            self._benchmarks[key] = harness_api.load(cell)
        return self._benchmarks[key]

    def _decoding(self, cell: Artefact, at: int) -> Decoding:
        task = job_of(cell).task
        return requests.decoding(task) if task.BRINGS_EXAMPLES else harness_api.decoding(self._benchmark(cell), at)

    def _model(self, cell: Artefact) -> str:
        """Return the name at the API of the model that answers a cell."""
        finetune = job_of(cell).finetune_id
        if finetune is None:
            return self._order.base.location
        folder = self._store.fetch(finetune, self._scratch / finetune.rpartition("/")[2])
        try:
            return str(json.loads((folder / MODEL_FILE).read_bytes())["model"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CellError(f"{finetune} holds no {MODEL_FILE} that names a model at an API ({error!r})") from error

    def _fail(self, cell: Artefact, error: str) -> None:
        if cell.id not in self._failed:
            self._failed.add(cell.id)
            failures.note(self._store, cell.id, error)

    def _tell(self) -> None:
        rate = self._answered / max(time.monotonic() - self._started, 1e-9)
        again = f", {self._api.retries} retries" if self._api.retries else ""
        self._advance(self._kept + self._answered, f"{rate:.1f} rows/s{again}")
