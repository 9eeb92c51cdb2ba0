"""The write stage: what a language model writes for datasets, answered in batches by an engine of our own or an API.

As predictions are, replies are kept by chunk: a fixed range of the prompts, found again after a kill if it still holds
these prompts, so that no prompt is paid for twice. All writings of one writer share its engines.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvray.console import Advance, track
from kvray.errors import InputError, KvrayError
from kvray.evaluate import chunks
from kvray.evaluate import prompts as requests
from kvray.evaluate.desk import Desk, job_of
from kvray.evaluate.engines import vllm_settings
from kvray.evaluate.engines.vllm import Engine, Question
from kvray.evaluate.job import fit, nodes, outcome
from kvray.evaluate.placement import place
from kvray.models.reference import API, BaseModelRef, load_tokenizer, resolve
from kvray.planning.artefacts import Artefact
from kvray.store import failures
from kvray.store.store import Outcome, Store
from kvray.sweep.model import Runtime


def write(artefacts: Sequence[Artefact], store: Store, base: BaseModelRef, runtime: Runtime) -> list[Outcome]:
    """Make writings: ask each task's prompts of its writer, greedily, and commit the replies.

    Writers behind an API are asked from here; all others need an initialised Ray, one engine or more per writer.

    Args:
        artefacts: of kind "writing".
        store: where everything is.
        base: the base model of the sweep, whose tokenizer the prompts were measured by.
        runtime: where and how; engines are made as for evaluation.

    Returns:
        One outcome per artefact, in order; a failed one leaves ``failures/<id>.json`` in the store.

    Raises:
        ResourceError: no node of the cluster can hold an engine.
    """
    for artefact in artefacts:
        failures.delete(store, artefact.id)
    groups: dict[str, list[Artefact]] = {}
    for artefact in artefacts:
        groups.setdefault(job_of(artefact).writer, []).append(artefact)
    writers: dict[str, BaseModelRef] = {}
    for name, cells in groups.items():
        try:
            # Its own tokenizer counts nothing here, so that of a writer behind an API need not be looked for.
            writers[name] = resolve(name, (base.tokenizer or base).name if name.startswith(API) else None)
        except InputError as error:
            for cell in cells:
                failures.note(store, cell.id, str(error))
    local = {name: writer for name, writer in writers.items() if not writer.api}
    orders: list[WritingOrder] = []
    crashes: list[str | None] = []
    with track("write", sum(artefact.rows for artefact in artefacts), "prompts") as advance:
        for name, writer in writers.items():
            if writer.api:
                _ask_api(writer, groups[name], store, base, runtime, advance)
        if local:
            cpus, gpus, at_once = place(runtime, nodes())
            parts = math.ceil(at_once / len(local))
            orders = [
                WritingOrder(writer, base, tuple(groups[name]), part, parts, runtime, gpus, cpus)
                for name, writer in local.items()
                for part in range(parts)
            ]
            crashes = fit(orders, answer, store, runtime, {"cpu": cpus, "gpu": gpus}, at_once, advance)
    return [outcome(artefact, store, orders, crashes) for artefact in artefacts]


def answer(order: WritingOrder, store: Store, report: Callable[[int], None]) -> None:
    """Do an order in this process: write what is missing and commit every writing that becomes whole.

    Raises:
        KvrayError: nothing of the order can be done (the model cannot be served here).
        Exception: the engine died; what was written stays.
    """
    vllm_settings.prepare_environment(order.gpus > 0, order.cpus)
    desk = Desk(store, order.cells, order.base, order.part, order.parts, report)
    if not desk.parcels:
        return
    chosen = vllm_settings.settings(order.writer, order.runtime, order.gpus, None, [])
    vllm_settings.check_platform(chosen.gpu)
    try:
        limit = vllm_settings.model_config(chosen).max_model_len
    except (ValueError, OSError) as error:
        raise InputError(f"writer {order.writer.name}: vLLM cannot serve it: {error}") from error
    tokenizer = load_tokenizer(order.writer)
    encoded = [requests.encode(tokenizer, parcel.prompts) for parcel in desk.parcels]

    def fitting() -> Iterator[tuple[tuple[int, int], NDArray[np.int32], int]]:
        for number, (parcel, prompts) in enumerate(zip(desk.parcels, encoded, strict=True)):
            most = job_of(parcel.cell).task.WRITING_TOKENS
            for row, prompt in enumerate(prompts):
                if requests.fits(prompt, most, limit):
                    yield (number, row), prompt, most

    replies = [[chunks.too_long(len(prompt)) for prompt in prompts] for prompts in encoded]
    needed = [len(prompt) + most for _, prompt, most in fitting()]
    engine = Engine(chosen, requests.engine_length(needed, limit)) if needed else None
    open_rows = [0] * len(replies)
    for (number, _), _, _ in fitting():
        open_rows[number] += 1
    for parcel, ours, left in zip(desk.parcels, replies, open_rows, strict=True):
        if not left:
            desk.finish(parcel, ours, {"seconds": 0.0})
    if engine is None:
        return
    clock = time.monotonic()
    asked = ((key, Question(prompt, requests.Decoding(most, ()))) for key, prompt, most in fitting())
    for (number, row), reply in engine.answer(asked):
        replies[number][row] = reply
        open_rows[number] -= 1
        if not open_rows[number]:
            now = time.monotonic()
            desk.finish(desk.parcels[number], replies[number], {"seconds": now - clock, "engine": engine.facts})
            clock = now


def _ask_api(
    writer: BaseModelRef,
    cells: Sequence[Artefact],
    store: Store,
    base: BaseModelRef,
    runtime: Runtime,
    advance: Advance,
) -> None:
    """Let a model behind an API write what is missing; an error is noted for every writing that it leaves undone."""
    from kvray.evaluate.openai import replies

    try:
        desk = Desk(store, cells, base, 0, 1, advance)
        for parcel in desk.parcels:
            started = time.monotonic()
            answers = replies(writer, parcel.prompts, job_of(parcel.cell).task.WRITING_TOKENS, runtime)
            desk.finish(parcel, answers, {"seconds": time.monotonic() - started})
    except KvrayError as error:
        for cell in cells:
            if store.manifest(cell.id) is None and failures.read(store, cell.id) is None:
                failures.note(store, cell.id, str(error))


@dataclass(frozen=True)
class WritingOrder:
    """What one engine is to write.

    Attributes:
        writer: the model that writes.
        base: the base model whose tokenizer the prompts are measured by.
        cells: writings, in order.
        part: which of the ``parts`` engines this is; it takes every parts-th chunk.
        parts: engines that share these writings.
        runtime: where and how.
        gpus: GPUs of this engine.
        cpus: CPUs of this engine.
    """

    writer: BaseModelRef
    base: BaseModelRef
    cells: tuple[Artefact, ...]
    part: int
    parts: int
    runtime: Runtime
    gpus: float
    cpus: float
