"""Where seats get their work from: the queue in their own process, or that of the dispatcher's actor."""

import itertools
import time
import uuid
from collections.abc import Collection, Sequence
from typing import Any

from kvray.driver.seats.queue import WorkQueue
from kvray.planning.process import this_process
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

    def join(self, role: str = "engine") -> None:
        import ray

        self._ask("join", role, this_process(ray.get_runtime_context().get_node_id()))

    def beat(self) -> None:
        self._tell("beat")

    def take(self, holding: Collection[str | None] = (), wait: bool = True) -> Unit | Nothing:
        self._process = self._process or uuid.uuid4().hex
        for attempt in itertools.count():
            given = self._ask("take", list(holding), self._process)
            if given is not Nothing.LATER or not wait or attempt * PAUSE_S >= 1.0:
                return given  # type: ignore[no-any-return]  # actors are untyped
            time.sleep(PAUSE_S)
        raise AssertionError

    def saved(self, unit: Unit, part: int, entry: FileEntry | None = None) -> None:
        self._ask("saved", unit, part, entry)

    def finish(self, unit: Unit, files: Sequence[FileEntry] = ()) -> Sequence[FileEntry] | None:
        return self._ask("finish", unit, list(files))  # type: ignore[no-any-return]

    def committed(self, unit: Unit) -> None:
        self._ask("committed", unit)

    def failed(self, unit: Unit, error: str) -> None:
        self._ask("failed", unit, error)

    def died(self, error: str, preempted: bool = False, final: bool = False) -> bool:
        return bool(self._ask("died", error, preempted, final))

    def give_back(self, unit: Unit, length: int) -> None:
        self._ask("give_back", unit, length)

    def length(self) -> int:
        return int(self._ask("length"))

    def progress(self, unit: Unit, done: float, note: str = "") -> None:
        self._tell("progress", unit, done, note)

    def started(self, seconds: float) -> None:
        self._ask("started", seconds)

    def _tell(self, method: str, *arguments: Any) -> None:
        """Call without waiting; such calls may overtake each other."""
        self._dispatcher.call.remote(method, self._seat, *arguments)

    def _ask(self, method: str, *arguments: Any) -> Any:
        import ray

        return ray.get(self._dispatcher.call.remote(method, self._seat, *arguments))


class LocalSource:
    """A :class:`~kvray.planning.work.Source` for a seat in the queue's own process."""

    def __init__(self, queue: WorkQueue, seat: Seat, pause_s: float = 0.2) -> None:
        self._queue, self._name, self._pause_s = queue, seat.name, pause_s

    def join(self, role: str = "engine") -> None:
        """Do nothing: nobody can end this process but itself."""

    def beat(self) -> None:
        self._queue.beat(self._name)

    def take(self, holding: Collection[str | None] = (), wait: bool = True) -> Unit | Nothing:
        given = self._queue.take(self._name, holding)
        if wait and given is Nothing.LATER:
            time.sleep(self._pause_s)
            return self._queue.take(self._name, holding)
        return given

    def saved(self, unit: Unit, part: int, entry: FileEntry | None = None) -> None:
        self._queue.saved(self._name, unit, part, entry)

    def finish(self, unit: Unit, files: Sequence[FileEntry] = ()) -> Sequence[FileEntry] | None:
        return self._queue.finish(self._name, unit, files)

    def committed(self, unit: Unit) -> None:
        self._queue.committed(self._name, unit)

    def failed(self, unit: Unit, error: str) -> None:
        self._queue.failed(self._name, unit, error)

    def died(self, error: str, preempted: bool = False, final: bool = False) -> bool:
        return self._queue.died(self._name, error, preempted, final)

    def give_back(self, unit: Unit, length: int) -> None:
        self._queue.give_back(self._name, unit, length)

    def length(self) -> int:
        return self._queue.length(self._name)

    def progress(self, unit: Unit, done: float, note: str = "") -> None:
        self._queue.progress(self._name, unit, done, note)

    def started(self, seconds: float) -> None:
        self._queue.started(self._name, seconds)
