"""A small sweep whose models are stand-ins: the real driver, stages, store and resume, in one process and without Ray.

A finetune is a chain of hashes, checkpointed and committed by the real code, so that where it went on after a death
shows in its weights. An answer follows from the weights of the model that gave it and from the prompt. So every byte
but times is known in advance, whatever died in between.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from safetensors.numpy import load_file, save_file

from kvray.console import Line
from kvray.driver import make
from kvray.driver import run as driver
from kvray.driver.connection import Connection
from kvray.driver.seats.lanes import Lanes
from kvray.driver.seats.placement import Capacity
from kvray.evaluate import chunks
from kvray.evaluate.engines.base import ADAPTER_CONFIG, Adapter, Engine, Key, Reply, Request
from kvray.evaluate.job import engine
from kvray.finetune.encode import Encoded
from kvray.finetune.storage import Checkpoints, commit, job_of, read_whole
from kvray.generate import job
from kvray.models.reference import BaseModelRef
from kvray.planning.artefacts import Artefact
from kvray.planning.work import EVALUATE, FINETUNE, Lane, Nothing, Seat, Source, Unit
from kvray.store.store import Outcome, Store
from kvray.sweep.model import Sweep

STEPS, CHECKPOINT_STEPS = 6, 2
"""Of each finetune, and between its checkpoints."""
SHARD_ROWS, CHUNK_ROWS = 16, 8
"""In the place of 1,024 and 256, so that few rows are many files."""


def sweep(**runtime: Any) -> Sweep:
    """Return a sweep of four datasets, three finetunes and eight cells, most of several files."""
    return Sweep(
        name="standin",
        base_model="kvray-tiny",
        datasets={
            "few": {"task": "mdqa", "split": "train", "documents": 3, "questions": 10},
            "many": {"task": "mdqa", "split": "train", "documents": 2, "questions": 40},
        },
        mixtures={"few": {"few": 1.0}, "many": {"many": 1.0}, "both": {"few": 1.0, "many": 0.5}},
        finetune={"seeds": [0], "match": "rows", "epochs": 1},
        evaluate={
            "mdqa": {"task": "mdqa", "documents": 3, "positions": [1, 3], "questions": 10},
            "recall": {"task": "recall", "questions": 12},
        },
        runtime={"engine": f"{__name__}:StandIn", **runtime},
    )


class StandIn(Engine):
    """Answers with the digest of its weights and of the prompt."""

    limit = 2048  # type: ignore[assignment]

    def start(self, length: int) -> None:
        """Serve the base model."""
        self._digests: dict[str, str] = {}

    def load(self, adapter: Adapter) -> None:
        """Read an adapter's weights."""
        self._digests[adapter.name] = digest(adapter.path)

    def info(self, adapter: Adapter | None) -> dict[str, Any]:
        """Return that it is a stand-in."""
        return {"engine": "stand-in"}

    def answer(self, requests: Iterable[tuple[Key, Request]]) -> Iterator[tuple[Key, Reply]]:
        """Answer in order."""
        for key, request in requests:
            weights = self._digests[request.adapter.name] if request.adapter else "base"
            length = len(request.tokens)
            if request.kind == "score":
                level = -1.0 - (int(weights, 16) % 97 + 1) / 100 if request.adapter else -1.0
                yield key, Reply(length, 0, 0, None, "stop", ((level, True),) * (length - 1))
            else:
                yield key, Reply(length, 0, 3, f"{weights} {int(request.tokens.sum())}", "stop")


def digest(adapter: Path) -> str:
    """Return what a stand-in's weights are known by."""
    weights = load_file(adapter / "adapter_model.safetensors")["weights"]
    return hashlib.sha256(weights.tobytes()).hexdigest()[:12]


def slot(
    source: Source,
    seat: Seat,
    *,
    finetunes: Mapping[str, Artefact],
    store: Store,
    step_s: float = 0.0,
    steps: int = STEPS,
) -> None:
    """Make finetunes by the real checkpoints and the real commit; a step hashes what the one before it left."""
    source.started(0.0)
    while (unit := source.take()) is not Nothing.END:
        if unit is not Nothing.LATER:
            _finetune(source, unit, finetunes[unit.artefact_id], store, step_s, steps)


def _finetune(source: Source, unit: Unit, artefact: Artefact, store: Store, step_s: float, steps: int) -> None:
    checkpoints = Checkpoints(store, artefact)
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(_scratch()))
        weights = np.frombuffer(hashlib.sha256(artefact.fingerprint.encode()).digest(), np.uint8).copy()
        losses = np.zeros(0)
        found = checkpoints.last()
        if found is not None:
            state = load_file(checkpoints.get(found, scratch))
            weights, losses = state["weights"], state["losses"]
        rows = sum(read_whole(store, dataset).num_rows for dataset, _ in job_of(artefact).mixture)
        for step in range(len(losses) + 1, steps + 1):
            time.sleep(step_s)
            weights = np.frombuffer(hashlib.sha256(weights.tobytes()).digest(), np.uint8).copy()
            losses = np.append(losses, float(weights[0]))
            source.progress(unit, step / (steps + 1))
            if step % CHECKPOINT_STEPS == 0 and step < steps:
                file = scratch / "checkpoint.safetensors"
                save_file({"weights": weights, "losses": losses}, file)
                checkpoints.put(file, step)
        model = scratch / "model"
        model.mkdir()
        save_file({"weights": weights}, model / "adapter_model.safetensors")
        (model / ADAPTER_CONFIG).write_text("{}")
        log = [_logged(number, loss, rows) for number, loss in enumerate(losses.tolist(), 1)]
        ids = [np.arange(8, dtype=np.int32)] * rows
        commit(store, artefact, Encoded(ids, np.full(rows, 2, np.int32)), log, model, {})
    checkpoints.clear()
    source.committed(unit)


def _logged(step: int, loss: float, rows: int) -> dict[str, Any]:
    row = {"step": step, "epoch": step / STEPS, "loss": loss, "loss_integers": None, "loss_words": None}
    return row | {"learning_rate": 0.001, "grad_norm": 1.0, "tokens": step * rows, "seconds": float(step)}


def _scratch() -> Any:
    import tempfile

    return tempfile.TemporaryDirectory(prefix="kvray-standin-")


class Generation:
    """Makes datasets by the real code, in the calling process."""

    def __init__(self, store: Store, base: BaseModelRef, runtime: Any) -> None:
        self._made_of = store, base, runtime
        self._waiting: list[Artefact] = []
        self.busy = False

    def makes(self, artefact_id: str) -> bool:
        """Return whether a dataset is about to be made."""
        return any(one.id == artefact_id for one in self._waiting)

    def add(self, artefact: Artefact) -> None:
        """Take a dataset."""
        self._waiting.append(artefact)

    def poll(self) -> list[Outcome]:
        """Make what waits."""
        waiting, self._waiting = self._waiting, []
        return job.generate(waiting, *self._made_of) if waiting else []

    def line(self) -> Line | None:
        """Return nothing: it takes no time."""
        return None


class Cluster:
    """Stands in for Ray's, of which nothing is asked."""

    def __init__(self, local: bool) -> None:
        self.local = local

    def capacity(self) -> Capacity:
        """Return a machine of two CPUs."""
        return Capacity([{"CPU": 2.0}])


def open_lanes(todo: Sequence[Artefact], store: Store, base: BaseModelRef, runtime: Any, cluster: Any) -> Lanes:
    """Return lanes whose seats are threads."""
    finetunes = {one.id: one for one in todo if one.kind == "finetune"}
    cells = {one.id: one for one in todo if one.kind == "predictions"}
    works = {
        FINETUNE: partial(slot, finetunes=finetunes, store=store),
        EVALUATE: partial(engine, store=store, base=base, runtime=runtime, cells=cells),
    }
    return Lanes((), [Lane(name, work, {}, most=1, start_s=0.0) for name, work in works.items()])


@contextlib.contextmanager
def _connection(runtime: Any) -> Iterator[Connection]:
    yield Connection(local=True, ends=True)


def run(plan: Any, base: BaseModelRef, store: Store) -> driver.Result:
    """Make what the store lacks, by the real driver with stages that are threads of this process."""
    replaced = {"connect": _connection, "Cluster": Cluster, "Generation": Generation, "open_lanes": open_lanes}
    with (
        mock.patch.multiple(driver, **replaced),
        mock.patch.multiple(job, ROWS_PER_SHARD=SHARD_ROWS, ALONE_S=float("inf")),  # never by Ray Data
        mock.patch.object(chunks, "CHUNK_ROWS", CHUNK_ROWS),
        mock.patch.object(make, "POLL_S", 0.01),
    ):
        return driver.run(plan, base, store)
