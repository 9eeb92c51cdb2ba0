"""Seats in the driver's own process: threads that ask an API. No Ray."""

import time
from collections.abc import Collection, Sequence

from kvray.driver.queue import WorkQueue
from kvray.planning.work import Nothing, Seat, Unit
from kvray.store.manifest import FileEntry


class LocalSource:
    """A :class:`~kvray.planning.work.Source` for a seat in the queue's own process."""

    def __init__(self, queue: WorkQueue, seat: Seat, pause_s: float = 0.2) -> None:
        self._queue, self._name, self._pause_s = queue, seat.name, pause_s

    def take(self, holding: Collection[str | None] = (), wait: bool = True) -> Unit | Nothing:
        given = self._queue.take(self._name, holding)
        if wait and given is Nothing.LATER:
            time.sleep(self._pause_s)
            return self._queue.take(self._name, holding)
        return given

    def finish(self, unit: Unit, files: Sequence[FileEntry] = ()) -> Sequence[FileEntry] | None:
        return self._queue.finish(self._name, unit, files)

    def committed(self, unit: Unit) -> None:
        self._queue.committed(self._name, unit)

    def failed(self, unit: Unit, error: str) -> None:
        self._queue.failed(self._name, unit, error)

    def died(self, error: str, preempted: bool = False) -> None:
        self._queue.died(self._name, error, preempted)

    def give_back(self, unit: Unit, length: int) -> None:
        self._queue.give_back(self._name, unit, length)

    def length(self) -> int:
        return self._queue.length(self._name)

    def progress(self, unit: Unit, done: float, note: str = "") -> None:
        self._queue.progress(self._name, unit, done, note)

    def started(self, seconds: float) -> None:
        self._queue.started(self._name, seconds)
