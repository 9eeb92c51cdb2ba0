"""Where seats get their work from: the queue in their own process, or that of the dispatcher's actor."""

import itertools
import time
import uuid
from collections.abc import Collection, Sequence
from typing import Any

from kvray.driver.seats.queue import WorkQueue
from kvray.planning.work import Nothing, Seat, Unit
from kvray.store.manifest import FileEntry

PAUSE_S = 0.25
"""Between two questions of a seat that has no work."""


class RemoteSource:
    """A :class:`~kvray.planning.work.Source` for a seat in a process of its own."""

    def __init__(self, dispatcher: Any, seat: str) -> None:
        self._dispatcher, self._seat = dispatcher, seat
        self._process = ""

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_process": ""}  # whoever unpickles it is another process

    def take(self, holding: Collection[str | None] = (), wait: bool = True) -> Unit | Nothing:
        self._process = self._process or uuid.uuid4().hex
        for attempt in itertools.count():
            given = self._ask("take", list(holding), self._process)
            if given is not Nothing.LATER or not wait or attempt * PAUSE_S >= 1.0:
                return given  # type: ignore[no-any-return]  # actors are untyped
            time.sleep(PAUSE_S)
        raise AssertionError

    def finish(self, unit: Unit, files: Sequence[FileEntry] = ()) -> Sequence[FileEntry] | None:
        return self._ask("finish", unit, list(files))  # type: ignore[no-any-return]

    def committed(self, unit: Unit) -> None:
        self._ask("committed", unit)

    def failed(self, unit: Unit, error: str) -> None:
        self._ask("failed", unit, error)

    def died(self, error: str, preempted: bool = False) -> None:
        self._ask("died", error, preempted)

    def give_back(self, unit: Unit, length: int) -> None:
        self._ask("give_back", unit, length)

    def length(self) -> int:
        return int(self._ask("length"))

    def progress(self, unit: Unit, done: float, note: str = "") -> None:
        self._dispatcher.call.remote("progress", self._seat, unit, done, note)

    def started(self, seconds: float) -> None:
        self._ask("started", seconds)

    def _ask(self, method: str, *arguments: Any) -> Any:
        import ray

        return ray.get(self._dispatcher.call.remote(method, self._seat, *arguments))


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
