"""A driver of one process, for tests: cells -> units -> seats one after the other, in this thread."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from kvray.driver.seats.queue import Limits, WorkQueue
from kvray.driver.seats.sources import LocalSource
from kvray.evaluate import chunks
from kvray.evaluate.job import engine
from kvray.evaluate.served import model_of
from kvray.models.reference import BaseModelRef
from kvray.planning.artefacts import Artefact
from kvray.planning.work import EVALUATE, Lane, Nothing, Seat, Unit
from kvray.store.store import Store
from kvray.sweep.model import Runtime


class Watched(LocalSource):
    """Notes what its seat tells and asks."""

    def __init__(self, queue: WorkQueue, seat: Seat) -> None:
        super().__init__(queue, seat, pause_s=0.01)
        self.taken: list[Unit] = []
        self.starts: list[float] = []
        self.told: list[tuple[float, str]] = []

    def take(self, holding: Collection[str | None] = (), wait: bool = True) -> Unit | Nothing:
        given = super().take(holding, wait)
        if isinstance(given, Unit):
            self.taken.append(given)
        return given

    def started(self, seconds: float) -> None:
        self.starts.append(seconds)
        super().started(seconds)

    def progress(self, unit: Unit, done: float, note: str = "") -> None:
        self.told.append((done, note))
        super().progress(unit, done, note)


class Driver:
    """Evaluates cells of one base model; ``sources`` are those of the seats so far, ``errors`` of ended cells."""

    def __init__(self, store: Store, base: BaseModelRef, runtime: Runtime | None = None, retries: int = 0) -> None:
        self.store, self.base, self.runtime = store, base, runtime or Runtime()
        self.queue = WorkQueue([Lane(EVALUATE, lambda source, seat: None, {}, start_s=0.0)], Limits(retries))
        self.cells: dict[str, Artefact] = {}
        self.sources: list[Watched] = []
        self.errors: dict[str, str | None] = {}

    def add(self, cells: Sequence[Artefact], per_unit: int = 1) -> None:
        """Hand out what the store lacks of each cell, in units of so many chunks."""
        for cell in cells:
            self.cells[cell.id] = cell
            self.queue.add(EVALUATE, cell.id, units(self.store, cell, per_unit))

    def seat(self, counted_by: BaseModelRef | None = None) -> None:
        """Run one seat to its end; raises what ends it early."""
        seat = Seat(f"seat-{len(self.sources)}", EVALUATE, threads=2)
        self.queue.seat(seat)
        self.sources.append(Watched(self.queue, seat))
        try:
            given: dict[str, Any] = {"store": self.store, "base": self.base, "runtime": self.runtime}
            engine(self.sources[-1], seat, cells=self.cells, counted_by=counted_by, **given)
        except BaseException as error:
            self.queue.ended(seat.name, f"{type(error).__name__}: {error}")
            raise
        else:
            self.queue.ended(seat.name)
        finally:
            self.errors |= {outcome.artefact_id: outcome.error for outcome in self.queue.outcomes()}


def evaluate(store: Store, base: BaseModelRef, *cells: Artefact, per_unit: int = 1, **runtime: Any) -> list[str | None]:
    """Make cells by one seat after the other; return the error of each, None if it was committed."""
    driver = Driver(store, base, Runtime(**runtime))
    driver.add(cells, per_unit)
    driver.queue.close()
    while not driver.queue.over:
        driver.seat(counted_by=base)
    return [driver.errors[cell.id] for cell in cells]


def units(store: Store, cell: Artefact, per_unit: int) -> list[Unit]:
    """Return the units of a cell: the chunks whose files the store lacks, or one without chunks to commit it."""
    model = model_of(cell)
    rows, needs = cell.rows, getattr(cell.params, "dataset_id", None)
    if needs is None and cell.kind == "predictions":
        return [Unit(0, cell.id, model, None, rows)]
    every = range(chunks.chunk_count(rows))
    absent = [index for index in every if not Path(store.path(cell.id, chunks.chunk_name(index))).exists()]
    split = [tuple(absent[at : at + per_unit]) for at in range(0, len(absent), per_unit)] or [()]
    return [Unit(0, cell.id, model, part, sum(len(chunks.span(each, rows)) for each in part)) for part in split]
