"""The work of a run by lane: what is ready, which seat does it, and what becomes of it when that seat dies. No Ray.

The queue is made anew from the plan and the store at every start; nothing else is remembered. A seat prefers models
that it has loaded; among others, those with the most work per seat that serves them. An idle seat leaves to others what
they wait for once it has been idle for as long as a start takes: a rule that costs at most twice what knowing the
future would (the ski-rental problem; Karlin et al. 1988).
"""

import itertools
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from kvray.driver.seats import stalls
from kvray.driver.seats.attempts import Attempts, Lost
from kvray.driver.seats.demand import Room, view, wanted
from kvray.driver.seats.state import CellState, LaneState, LaneView, SeatState, Stall
from kvray.planning.process import Process
from kvray.planning.work import Lane, Nothing, Seat, Unit
from kvray.store.manifest import FileEntry
from kvray.store.store import Outcome

HOST = "host"
"""The role of the process that a seat begins with; of a slot it waits for the devices of workers, maybe for days."""


@dataclass(frozen=True)
class Limits:
    """What a seat may cost.

    Attributes:
        retries: further attempts at a unit whose seat died without progress, and further starts of a lane's seats in a
            row that died before their first unit.
        stall_s: seconds for which a seat may be silent.
        start_s: seconds for which it may be so from its first process until it is up, downloads included.
    """

    retries: int = 0
    stall_s: float = math.inf
    start_s: float = math.inf


class WorkQueue:
    """Holds the units of a run; every method may be called from any thread."""

    def __init__(
        self,
        lanes: Iterable[Lane],
        limits: Limits,
        clock: Callable[[], float] = time.monotonic,
        lost: Lost = frozenset,
        home: str = "",
    ) -> None:
        """Take the lanes; see :class:`~kvray.driver.seats.attempts.Attempts` for ``lost`` and ``home``."""
        self._lanes = {lane.name: LaneState(lane, start_s=lane.start_s) for lane in lanes}
        self._limits = limits
        self._clock = clock
        self._attempts = Attempts(limits.retries, lost, home, clock)
        self._looks = stalls.Looks(clock)
        self._lock = threading.RLock()
        self._cells: dict[str, CellState] = {}
        self._after: dict[str, float] = {}  # seconds of what waits for an artefact
        self._seats: dict[str, SeatState] = {}
        self._outcomes: list[Outcome] = []
        self._starving: str | None = None
        self._numbers = itertools.count()
        self._closed = False
        self._halted = False
        self.generating = False

    # What the driver tells.

    def expect(self, lane: str, artefact_id: str, seconds: float, after: float, soon: bool) -> None:
        """Tell of work that is not ready; ``soon``: what it needs is being made and takes no longer than a start.

        ``after`` are the estimated seconds of the longest chain of work that waits for it.
        """
        with self._lock:
            self._lanes[lane].expected[artefact_id] = (seconds, seconds + after, soon)

    def add(self, lane: str, artefact_id: str, units: Sequence[Unit], after: float = 0.0) -> None:
        """Tell of an artefact whose needs are committed; units get numbers of the queue's own."""
        with self._lock:
            self._lanes[lane].expected.pop(artefact_id, None)
            refused = self._lanes[lane].refused
            if refused is not None:
                self._outcomes.append(Outcome(artefact_id, refused))
                return
            if self._halted:
                self._outcomes.append(Outcome(artefact_id, None, left=True))
                return
            numbered = [replace(unit, number=next(self._numbers)) for unit in units]
            rows = sum(unit.rows for unit in numbered)
            self._cells[artefact_id] = CellState(lane, {unit.number: unit for unit in numbered}, rows)
            self._after[artefact_id] = after
            self._lanes[lane].total += rows
            for unit in numbered:
                self._make_ready(unit)

    def drop(self, artefact_id: str) -> None:
        """Forget an artefact that is not to be made here: what it needs has failed, or another run makes it."""
        with self._lock:
            for lane in self._lanes.values():
                lane.expected.pop(artefact_id, None)
            if artefact_id in self._cells:
                self._forget(artefact_id)

    def halt(self) -> None:
        """Tell that nothing more is to begin: no further seat, and no artefact that no seat has begun, which is left.

        What has begun goes on, on the seats that there are.
        """
        with self._lock:
            self._halted = True
            for lane in self._lanes.values():
                lane.expected.clear()
            for artefact_id in [one for one, cell in self._cells.items() if not cell.begun]:
                self._leave(artefact_id)
            self._leave_stranded()

    def generate(self, busy: bool) -> None:
        """Tell whether datasets are being made, which needs a CPU that idle seats would hold."""
        with self._lock:
            self.generating = busy

    def close(self) -> None:
        """Tell that nothing more will be added."""
        with self._lock:
            self._closed = True

    def outcomes(self) -> list[Outcome]:
        """Return how artefacts ended since the last call."""
        with self._lock:
            ended, self._outcomes = self._outcomes, []
            return ended

    def view(self) -> list[LaneView]:
        """Return what each lane does now."""
        with self._lock:
            return [view(name, lane, self._seats.values()) for name, lane in self._lanes.items()]

    # What whoever starts seats asks and tells.

    @property
    def over(self) -> bool:
        """Whether all work is done and no more will be added."""
        with self._lock:
            return self._closed and not self._cells

    def wanted(self, room: Room) -> str | None:
        """Return the lane that is to get one more seat now, None if none is."""
        with self._lock:
            if self._halted:
                return None
            lane, self._starving = wanted(self._lanes, self._seats.values(), room, self.generating, self._clock())
            return lane

    def seat(self, seat: Seat) -> None:
        """Tell of a seat that is about to start."""
        with self._lock:
            self._seats[seat.name] = SeatState(seat.lane, self._clock())

    def ended(self, name: str, why: str | None = None, preempted: bool = False) -> None:
        """Tell that a seat ended: well (None), or by its death, whose reason ``why`` gives; see :meth:`died`."""
        with self._lock:
            seat = self._seats.pop(name, None)
            if seat is None:
                return
            if why is not None and not seat.dead:
                self._release(seat, why, preempted)
            for unit in seat.held.values():
                self._make_ready(unit)
            if self._halted:
                self._leave_stranded()

    def refuse(self, lane: str, error: str) -> None:
        """Tell that nothing of a lane can be done: all its artefacts fail, later ones too."""
        with self._lock:
            self._lanes[lane].refused = error
            for artefact_id in [each for each, cell in self._cells.items() if cell.lane == lane]:
                self._end(artefact_id, error)

    def hung(self) -> list[Stall]:
        """Return the seats that have been silent for too long, and are to be ended.

        To be called again and again. One that is not ended then is returned again after as long a silence.
        """
        with self._lock:
            passed, limits = self._looks.passed(), (self._limits.stall_s, self._limits.start_s)
            stalled = [stalls.found(name, seat, passed, *limits) for name, seat in self._seats.items()]
            return [stall for stall in stalled if stall is not None]

    # What seats ask and tell: see kvray.planning.work.Source.

    def join(self, name: str, role: str, process: Process) -> None:
        with self._lock:
            seat = self._seats.get(name)
            if seat is not None:
                seat.processes[role] = process
                if role != HOST:
                    seat.silent_s = 0.0

    def beat(self, name: str) -> None:
        with self._lock:
            self._heard(name)

    def take(self, name: str, holding: Collection[str | None] = (), process: str = "") -> Unit | Nothing:
        """Return a unit for a seat; another ``process`` than before means that the seat's earlier one died."""
        with self._lock:
            seat = self._heard(name)
            if seat is None:
                return Nothing.END
            if seat.process and process != seat.process and not seat.dead:
                self._release(seat, "its node was to be taken away", preempted=True)
            seat.dead = False
            seat.process, seat.holding = process, tuple(holding)
            seat.silent_s = 0.0
            lane = self._lanes[seat.lane]
            others = [each for each in self._seats.values() if each.lane == seat.lane]
            serving = Counter(unit.model for each in others for unit in each.held.values())
            unit = lane.ready.take(seat.holding, serving)
            if unit is not None:
                seat.held[unit.number], seat.idle_since = unit, None
                self._cells[unit.artefact_id].begun = True
                return unit
            if lane.refused is not None or self._closed or not lane.expected:
                return Nothing.END
            now = self._clock()
            if seat.idle_since is None or seat.held:
                seat.idle_since = now
            others_wait = self._starving not in (None, seat.lane)
            return Nothing.END if others_wait and now - seat.idle_since >= lane.start_s else Nothing.LATER

    def saved(self, name: str, unit: Unit, part: int, entry: FileEntry | None = None) -> None:
        with self._lock:
            seat = self._heard(name)
            if seat is not None and unit.number in seat.held:
                self._attempts.progress(unit.number)
                if entry is not None:
                    seat.saved.setdefault(unit.number, {})[part] = entry

    def finish(self, name: str, unit: Unit, files: Sequence[FileEntry] = ()) -> Sequence[FileEntry] | None:
        """Note stored chunks; see :meth:`kvray.planning.work.Source.finish`."""
        with self._lock:
            cell, seat = self._cells.get(unit.artefact_id), self._heard(name)
            if cell is None or seat is None or unit.number not in seat.held:
                return None  # its artefact failed meanwhile, or the unit went to another seat
            cell.files |= {entry.name: entry for entry in files}
            cell.open.pop(unit.number, None)
            self._lanes[cell.lane].done += unit.rows
            if cell.open:
                self._let_go(seat, unit)
                return None
            # Who dies before the commit leaves it to another.
            seat.held[unit.number] = replace(unit, chunks=() if unit.chunks is not None else None, rows=0)
            return list(cell.files.values())

    def committed(self, name: str, unit: Unit) -> None:
        with self._lock:
            self._heard(name)
            cell = self._cells.get(unit.artefact_id)
            if cell is not None:
                self._lanes[cell.lane].done += sum(each.rows for each in cell.open.values())
                self._end(unit.artefact_id, None)

    def failed(self, name: str, unit: Unit, error: str) -> None:
        with self._lock:
            self._heard(name)
            if unit.artefact_id in self._cells:
                self._end(unit.artefact_id, error)

    def died(self, name: str, error: str, preempted: bool = False, final: bool = False) -> bool:
        with self._lock:
            seat = self._seats.get(name)
            if seat is None:
                return False
            if final:
                for artefact_id in {unit.artefact_id for unit in seat.held.values()} & self._cells.keys():
                    self._end(artefact_id, error)
            self._release(seat, error, preempted)
            seat.dead = True
            return self._lanes[seat.lane].refused is None and not seat.hung

    def give_back(self, name: str, unit: Unit, length: int) -> None:
        with self._lock:
            seat = self._heard(name)
            if seat is not None and unit.number in seat.held:
                lane = self._lanes[seat.lane]
                lane.length = max(lane.length, length)
                self._let_go(seat, unit)
                self._make_ready(unit)

    def length(self, name: str) -> int:
        with self._lock:
            seat = self._heard(name)
            return self._lanes[seat.lane].length if seat else 0

    def progress(self, name: str, unit: Unit, done: float, note: str = "") -> None:
        with self._lock:
            seat = self._heard(name)
            if seat is not None and unit.number in seat.held:
                seat.progress[unit.number] = (done, note)

    def started(self, name: str, seconds: float) -> None:
        """Note that a seat is up after so many seconds; the lane's estimate becomes the mean of those measured."""
        with self._lock:
            seat = self._heard(name)
            if seat is None:
                return
            lane = self._lanes[seat.lane]
            if not seat.up:
                seat.up = True
                self._attempts.progress(seat.lane)
                lane.start_s = (lane.start_s * lane.starts + seconds) / (lane.starts + 1)
                lane.starts += 1

    # Within.

    def _heard(self, name: str) -> SeatState | None:
        """Return a seat that has just been heard of, None if it has ended."""
        seat = self._seats.get(name)
        if seat is not None and seat.silent_s is not None:
            seat.silent_s = 0.0
        return seat

    def _make_ready(self, unit: Unit) -> None:
        cell = self._cells[unit.artefact_id]
        cell.open[unit.number] = unit
        self._lanes[cell.lane].ready.add(unit, unit.seconds + self._after[unit.artefact_id])

    def _release(self, seat: SeatState, why: str, preempted: bool = False) -> None:
        """Hand out again what a dead process held, without the parts that are stored, as long as it has attempts."""
        why = seat.hung or why
        held, saved = list(seat.held.values()), seat.saved
        seat.held, seat.saved, seat.progress = {}, {}, {}
        # It died of its start if it was not up, and not of its first unit.
        keys: list[Hashable] = [unit.number for unit in held] if seat.up else [seat.lane]
        spent = set() if preempted else self._attempts.died(keys, {each.node for each in seat.processes.values()})
        seat.up = False  # of a slot: its next process is yet to start
        seat.silent_s = None
        for unit in held:
            if unit.artefact_id not in self._cells:
                continue
            if unit.number in spent:
                self._end(unit.artefact_id, why)
            else:
                self._make_ready(self._without(unit, saved.get(unit.number, {})))
        if seat.lane in spent:
            self.refuse(seat.lane, why)

    def _without(self, unit: Unit, saved: Mapping[int, FileEntry]) -> Unit:
        """Return a unit without its chunks that are stored, which are noted as done."""
        if not saved or unit.chunks is None:
            return unit
        cell = self._cells[unit.artefact_id]
        cell.files |= {entry.name: entry for entry in saved.values()}
        rows = min(unit.rows, sum(entry.rows or 0 for entry in saved.values()))
        self._lanes[cell.lane].done += rows
        left = tuple(number for number in unit.chunks if number not in saved)
        return replace(unit, chunks=left, rows=unit.rows - rows, seconds=unit.seconds * len(left) / len(unit.chunks))

    def _let_go(self, seat: SeatState, unit: Unit) -> None:
        seat.held.pop(unit.number, None)
        seat.progress.pop(unit.number, None)
        seat.saved.pop(unit.number, None)

    def _end(self, artefact_id: str, error: str | None) -> None:
        self._forget(artefact_id, made=error is None)
        self._outcomes.append(Outcome(artefact_id, error))

    def _leave(self, artefact_id: str) -> None:
        self._forget(artefact_id)
        self._outcomes.append(Outcome(artefact_id, None, left=True))

    def _leave_stranded(self) -> None:
        """Leave what no seat is there for, and none will be opened for."""
        served = {seat.lane for seat in self._seats.values()}
        for artefact_id in [one for one, cell in self._cells.items() if cell.lane not in served]:
            self._leave(artefact_id)

    def _forget(self, artefact_id: str, made: bool = False) -> None:
        cell = self._cells.pop(artefact_id)
        lane = self._lanes[cell.lane]
        if not made:
            lane.total -= sum(unit.rows for unit in cell.open.values())
        lane.ready.drop(cell.open)
        for seat in self._seats.values():
            for unit in [each for each in seat.held.values() if each.artefact_id == artefact_id]:
                self._let_go(seat, unit)
