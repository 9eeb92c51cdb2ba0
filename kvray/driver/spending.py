"""What a run spends, as its seats hold GPUs, and whether the budget of its sweep is reached.

Several runs of a sweep share its budget: each writes what it has spent every :data:`EVERY_S` seconds, and reads what
the others have. What a run that is killed spent after it last wrote is not counted, up to that time.
"""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from kvray.console import say
from kvray.driver.seats.state import LaneView
from kvray.errors import StoreError
from kvray.planning.cost import budget
from kvray.planning.cost.budget import FOLDER, Spent
from kvray.store.store import Store
from kvray.sweep.model import Runtime

EVERY_S = 30.0
"""Seconds between two times that a run writes what it has spent, and reads what others have."""
_END_S = 5.0  # for which the end of a run waits for a write that is under way


class Spending:
    """What a run and the others of its sweep have spent; a context, in which it is written now and then."""

    def __init__(
        self, store: Store, sweep: str, run: str, runtime: Runtime, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Read what earlier runs have spent, where there is a budget; StoreError if a document of it is unreadable.

        ``run`` is this run's own name among all runs of the sweep.
        """
        self.limit = budget.limit(runtime)
        self._store, self._sweep, self._run, self._clock = store, sweep, run, clock
        self._others = self._read()
        self._held: dict[str, float] = {"GPUs": 0.0, "seats": 0.0}  # seconds
        self._last: float | None = None
        self._before = {"GPUs": 0.0, "seats": 0.0}  # of each, what is held since the last look
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._live, name="kvray-spending", daemon=True)

    def __enter__(self) -> "Spending":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._stop.set()
        self._thread.join(_END_S)
        if kind is not None and issubclass(kind, StoreError):
            return  # the store does not answer
        with self._store.hurry(_END_S if kind is None else 0.0):
            try:
                self._write()
            except StoreError as failure:
                say(f"kvray: warning: what this run has spent is not written: {failure}")

    @property
    def own(self) -> Spent:
        """What this run has spent."""
        gpus = self._held["GPUs"] > 0
        return Spent(self._held["GPUs" if gpus else "seats"] / 3600, gpus)

    @property
    def total(self) -> Spent:
        """What all runs of the sweep have spent, the others as of when they were last read."""
        return self._others + self.own

    @property
    def reached(self) -> bool:
        """Whether the budget is spent; never without one."""
        return self.limit is not None and self.total.hours >= self.limit

    def hold(self, views: Sequence[LaneView], gpus: Mapping[str, float]) -> None:
        """Take what seats hold now; ``gpus`` are those of one seat of each lane that has devices."""
        now = self._clock()
        if self._last is not None:
            for what, number in self._before.items():
                self._held[what] += number * (now - self._last)
        self._last = now
        seats = {view.name: view.held for view in views if view.name in gpus}
        self._before = {
            "GPUs": sum(number * gpus[lane] for lane, number in seats.items()),
            "seats": float(sum(seats.values())),
        }

    def _live(self) -> None:
        while not self._stop.wait(EVERY_S):
            # An error may pass; if it does not, this run's own writing meets it, too.
            with contextlib.suppress(StoreError):
                self._write()
                self._others = self._read()

    def _read(self) -> Spent:
        return Spent() if self.limit is None else budget.read(self._store, self._sweep, but=self._run)

    def _write(self) -> None:
        own = self.own
        if own.hours:
            data = own.to_bytes(self._run, self._sweep, socket.gethostname())
            self._store.write_document(f"{FOLDER}/{self._sweep}/{self._run}.json", data)
