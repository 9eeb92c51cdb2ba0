"""What an API makes: seats that are threads of the driver's own process, as they hold no device. No Ray."""

import threading
from collections.abc import Mapping, Sequence
from functools import partial

from kvray.driver.seats.queue import Limits, WorkQueue
from kvray.driver.seats.sources import LocalSource
from kvray.driver.seats.state import LaneView
from kvray.errors import KvrayError, ResourceError
from kvray.finetune import openai
from kvray.models.reference import BaseModelRef
from kvray.planning.artefacts import Artefact
from kvray.planning.work import Lane, Nothing, Seat, Source, Unit
from kvray.store.store import Outcome, Store
from kvray.sweep.model import Runtime


class Threads:
    """The stage that asks APIs: one seat per lane, a thread that ends with this process."""

    def __init__(self, lanes: Sequence[Lane]) -> None:
        self._lanes = {lane.name: lane for lane in lanes}
        self._queue = WorkQueue(lanes, Limits())
        self._error: ResourceError | None = None

    def change(self, calls: Sequence[tuple[str, tuple[object, ...]]]) -> None:
        """Call methods of the work queue, by name, in order."""
        for method, arguments in calls:
            getattr(self._queue, method)(*arguments)

    def poll(self) -> tuple[list[Outcome], list[LaneView]]:
        """Return how artefacts ended since the last call, and what each lane does; start threads for new work.

        Raises ResourceError if an API serves nothing of the sweep.
        """
        if self._error is not None:
            raise self._error
        while (lane := self._queue.wanted(_one_each)) is not None:
            seat = Seat(lane, lane)
            self._queue.seat(seat)
            threading.Thread(target=self._serve, args=(self._lanes[lane], seat), name=lane, daemon=True).start()
        return self._queue.outcomes(), self._queue.view()

    def close(self, wait: bool) -> None:
        """Let threads that have no request under way end."""
        self._queue.close()

    def _serve(self, lane: Lane, seat: Seat) -> None:
        why = None
        try:
            lane.work(LocalSource(self._queue, seat), seat)
        except KvrayError as error:
            if isinstance(error, ResourceError):
                self._error = error
            self._queue.refuse(lane.name, str(error))
        except Exception as error:  # a bug of ours fails this lane with its name, not the whole run without a word
            why = f"{type(error).__name__}: {error}"
        self._queue.ended(seat.name, why)


def tune(
    source: Source,
    seat: Seat,
    *,
    finetunes: Mapping[str, Artefact],
    store: Store,
    base: BaseModelRef,
    runtime: Runtime,
) -> None:
    """Make finetunes by an API until the source ends, all that are ready at a time.

    Raises InputError for no key, no such URL, or epochs that are no whole number; ApiError if the API refuses every
    request.
    """
    source.started(0.0)
    while (unit := source.take()) is not Nothing.END:
        if unit is Nothing.LATER:
            continue
        units = {unit.artefact_id: unit}
        while isinstance(more := source.take(wait=False), Unit):
            units[more.artefact_id] = more
        advance = partial(_advance, source, unit)
        for outcome in openai.finetune([finetunes[one] for one in units], store, base, runtime, advance):
            if outcome.error is None:
                source.committed(units[outcome.artefact_id])
            else:
                source.failed(units[outcome.artefact_id], outcome.error)


def _advance(source: Source, unit: Unit, done: float, note: str = "", total: float | None = None) -> None:
    source.progress(unit, done, note)


def _one_each(counts: Mapping[str, int]) -> bool:
    return all(count <= 1 for count in counts.values())
