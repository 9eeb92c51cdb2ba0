"""The work of a run by lane: what is ready, which seat does it, and when one more seat is worth its start. No Ray.

The queue is made anew from the plan and the store at every start; nothing else is remembered. A seat prefers models
that it has loaded; among others, those with the most work per seat that serves them.

One more seat is worth its start, of ``s`` seconds, if it ends the lane's ``W`` seconds of work sooner: with ``n`` seats
they take ``W / n``, with one more ``s`` until it helps and then ``(W - n s) / (n + 1)``, which is sooner if
``W > n s``. An idle seat leaves to others what they wait for once it has been idle for as long as a start takes: a rule
that costs at most twice what knowing the future would (the ski-rental problem; Karlin et al. 1988).
"""

import heapq
import itertools
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from kvray.driver.seats.state import CellState, LaneState, LaneView, SeatState
from kvray.planning.work import Lane, Nothing, Seat, Unit
from kvray.store.manifest import FileEntry
from kvray.store.store import Outcome

Room = Callable[[Mapping[str, int]], bool]
"""Returns whether so many seats, by lane, may exist at the same time."""


class WorkQueue:
    """Holds the units of a run; every method may be called from any thread.

    ``retries`` bounds further attempts at a unit whose seat died, and further starts of a lane's seats in a row that
    died before their first unit.
    """

    def __init__(self, lanes: Iterable[Lane], retries: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._lanes = {lane.name: LaneState(lane, start_s=lane.start_s) for lane in lanes}
        self._retries = retries
        self._clock = clock
        self._lock = threading.RLock()
        self._cells: dict[str, CellState] = {}
        self._units: dict[int, Unit] = {}
        self._after: dict[str, float] = {}  # seconds of what waits for an artefact
        self._attempts: Counter[int] = Counter()
        self._seats: dict[str, SeatState] = {}
        self._outcomes: list[Outcome] = []
        self._starving: str | None = None
        self._numbers = itertools.count()
        self._closed = False
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
            return [self._view(name, lane) for name, lane in self._lanes.items()]

    # What whoever starts seats asks and tells.

    @property
    def over(self) -> bool:
        """Whether all work is done and no more will be added."""
        with self._lock:
            return self._closed and not self._cells

    def wanted(self, room: Room) -> str | None:
        """Return the lane that is to get one more seat now, None if none is."""
        with self._lock:
            counts = Counter(seat.lane for seat in self._seats.values())
            self._starving = "generate" if self.generating and not room(counts) else self._unplaced()
            first = {name: self._first(lane) for name, lane in self._lanes.items()}
            for name in sorted(first, key=lambda name: -first[name]):
                lane, target = self._lanes[name], self._target(name)
                fits = room(counts + Counter({name: 1}))
                if counts[name] < target and any(lane.ready.values()):
                    if fits:
                        return name
                    self._starving = self._starving or name
                # Keep what this lane will want in a moment from lanes whose work is less pressing.
                while counts[name] < target and room(counts + Counter({name: 1})):
                    counts[name] += 1
            return None

    def seat(self, seat: Seat) -> None:
        """Tell of a seat that is about to start."""
        with self._lock:
            self._seats[seat.name] = SeatState(seat.lane, self._clock())

    def ended(self, name: str, why: str | None = None) -> None:
        """Tell that a seat ended: well (None), or by its death, whose reason ``why`` gives."""
        with self._lock:
            seat = self._seats.pop(name, None)
            if seat is None:
                return
            if why is not None and not seat.dead:
                self._release(seat, why)
            for unit in seat.held.values():
                self._make_ready(unit)

    def refuse(self, lane: str, error: str) -> None:
        """Tell that nothing of a lane can be done: all its artefacts fail, later ones too."""
        with self._lock:
            self._lanes[lane].refused = error
            for artefact_id in [each for each, cell in self._cells.items() if cell.lane == lane]:
                self._end(artefact_id, error)

    # What seats ask and tell: see kvray.planning.work.Source.

    def take(self, name: str, holding: Collection[str | None] = (), process: str = "") -> Unit | Nothing:
        """Return a unit for a seat; another ``process`` than before means that the seat's earlier one died."""
        with self._lock:
            seat = self._seats.get(name)
            if seat is None:
                return Nothing.END
            if seat.process and process != seat.process and not seat.dead:
                self._release(seat, "its worker died")
            seat.dead = False
            seat.process, seat.holding = process, tuple(holding)
            lane = self._lanes[seat.lane]
            unit = self._choose(lane, seat)
            if unit is not None:
                seat.held[unit.number], seat.idle_since = unit, None
                return unit
            if lane.refused is not None or self._closed or not lane.expected:
                return Nothing.END
            now = self._clock()
            if seat.idle_since is None or seat.held:
                seat.idle_since = now
            others_wait = self._starving not in (None, seat.lane)
            return Nothing.END if others_wait and now - seat.idle_since >= lane.start_s else Nothing.LATER

    def finish(self, name: str, unit: Unit, files: Sequence[FileEntry] = ()) -> Sequence[FileEntry] | None:
        """Note stored chunks; see :meth:`kvray.planning.work.Source.finish`."""
        with self._lock:
            cell, seat = self._cells.get(unit.artefact_id), self._seats.get(name)
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
            cell = self._cells.get(unit.artefact_id)
            if cell is not None:
                self._lanes[cell.lane].done += sum(each.rows for each in cell.open.values())
                self._end(unit.artefact_id, None)

    def failed(self, name: str, unit: Unit, error: str) -> None:
        with self._lock:
            if unit.artefact_id in self._cells:
                self._end(unit.artefact_id, error)

    def died(self, name: str, error: str, preempted: bool = False) -> None:
        with self._lock:
            seat = self._seats.get(name)
            if seat is not None:
                self._release(seat, error, preempted)
                seat.dead = True

    def give_back(self, name: str, unit: Unit, length: int) -> None:
        with self._lock:
            seat = self._seats.get(name)
            if seat is not None and unit.number in seat.held:
                lane = self._lanes[seat.lane]
                lane.length = max(lane.length, length)
                self._let_go(seat, unit)
                self._make_ready(unit)

    def length(self, name: str) -> int:
        with self._lock:
            seat = self._seats.get(name)
            return self._lanes[seat.lane].length if seat else 0

    def progress(self, name: str, unit: Unit, done: float, note: str = "") -> None:
        with self._lock:
            seat = self._seats.get(name)
            if seat is not None and unit.number in seat.held:
                seat.progress[unit.number] = (done, note)

    def started(self, name: str, seconds: float) -> None:
        """Note that a seat is up after so many seconds; the lane's estimate becomes the mean of those measured."""
        with self._lock:
            seat = self._seats.get(name)
            if seat is None:
                return
            lane = self._lanes[seat.lane]
            if not seat.up:
                seat.up, lane.failed_starts = True, 0
                lane.start_s = (lane.start_s * lane.starts + seconds) / (lane.starts + 1)
                lane.starts += 1

    # Within.

    def _unplaced(self) -> str | None:
        """Return a lane with work whose seat has waited for devices for as long as a start takes, None if none has.

        By what nodes have in all there was room, but what is free is in pieces, others use it, or nodes are lost.
        """
        for seat in self._seats.values():
            lane = self._lanes[seat.lane]
            waits = self._clock() - seat.since >= lane.start_s if not seat.process else seat.dead
            if waits and any(lane.ready.values()):
                return seat.lane
        return None

    def _first(self, lane: LaneState) -> float:
        """Return the highest priority of work that is ready or will be soon; -1 if there is none."""
        ready = [-heap[0][0] for heap in lane.ready.values() if heap]
        return max([*ready, *(priority for _, priority, soon in lane.expected.values() if soon)], default=-1.0)

    def _target(self, name: str) -> int:
        """Return how many seats a lane's work is worth."""
        lane = self._lanes[name]
        held = [unit for seat in self._seats.values() if seat.lane == name for unit in seat.held.values()]
        soon = [seconds for seconds, _, soon in lane.expected.values() if soon]
        seconds = sum(lane.ready_s.values()) + sum(unit.seconds for unit in held) + sum(soon)
        count = sum(map(len, lane.ready.values())) + len(held) + len(soon)
        if not count or lane.refused is not None:
            return 0
        worth = max(1, math.ceil(seconds / lane.start_s)) if lane.start_s > 0 else count
        return min(count, worth, lane.lane.most or count)

    def _choose(self, lane: LaneState, seat: SeatState) -> Unit | None:
        for model in seat.holding:
            if lane.ready.get(model):
                return self._pop(lane, model)
        models = [model for model, heap in lane.ready.items() if heap]
        if not models:
            return None
        serving = Counter(
            unit.model for each in self._seats.values() if each.lane == seat.lane for unit in each.held.values()
        )

        return self._pop(lane, max(models, key=lambda model: lane.ready_s[model] / (1 + serving[model])))

    def _pop(self, lane: LaneState, model: str | None) -> Unit:
        _, number = heapq.heappop(lane.ready[model])
        unit = self._units[number]
        lane.ready_s[model] -= unit.seconds
        if not lane.ready[model]:
            del lane.ready[model], lane.ready_s[model]
        return unit

    def _make_ready(self, unit: Unit) -> None:
        cell = self._cells[unit.artefact_id]
        lane = self._lanes[cell.lane]
        self._units[unit.number] = cell.open[unit.number] = unit
        priority = unit.seconds + self._after[unit.artefact_id]
        heapq.heappush(lane.ready.setdefault(unit.model, []), (-priority, unit.number))
        lane.ready_s[unit.model] += unit.seconds

    def _release(self, seat: SeatState, why: str, preempted: bool = False) -> None:
        """Hand out again what a dead process held, unless it has had its attempts, of which preempted ones are none."""
        held, seat.held, seat.progress = list(seat.held.values()), {}, {}
        lane = self._lanes[seat.lane]
        lane.failed_starts += not seat.up and not preempted  # it died of its start, not of its first unit
        for unit in held:
            self._attempts[unit.number] += seat.up and not preempted
            if unit.artefact_id not in self._cells:
                continue
            if self._attempts[unit.number] > self._retries:
                self._end(unit.artefact_id, why)
            else:
                self._make_ready(unit)
        seat.up = False  # of a slot: its next process is yet to start
        if lane.failed_starts > self._retries:
            self.refuse(seat.lane, why)

    def _let_go(self, seat: SeatState, unit: Unit) -> None:
        seat.held.pop(unit.number, None)
        seat.progress.pop(unit.number, None)

    def _end(self, artefact_id: str, error: str | None) -> None:
        self._forget(artefact_id, made=error is None)
        self._outcomes.append(Outcome(artefact_id, error))

    def _forget(self, artefact_id: str, made: bool = False) -> None:
        cell = self._cells.pop(artefact_id)
        lane = self._lanes[cell.lane]
        if not made:
            lane.total -= sum(unit.rows for unit in cell.open.values())
        for unit in cell.open.values():
            heap = lane.ready.get(unit.model, [])
            entry = next((each for each in heap if each[1] == unit.number), None)
            if entry is not None:
                heap.remove(entry)
                heapq.heapify(heap)
                lane.ready_s[unit.model] -= unit.seconds
                if not heap:
                    del lane.ready[unit.model], lane.ready_s[unit.model]
        for seat in self._seats.values():
            for unit in [each for each in seat.held.values() if each.artefact_id == artefact_id]:
                self._let_go(seat, unit)

    def _view(self, name: str, lane: LaneState) -> LaneView:
        seats = [seat for seat in self._seats.values() if seat.lane == name]
        noted = [(seat.held[number], *state) for seat in seats for number, state in seat.progress.items()]
        held_s = sum(unit.seconds for seat in seats for unit in seat.held.values())
        return LaneView(
            name=name,
            done=lane.done + sum(done for _, done, _ in noted),
            total=lane.total,
            pending=sum(not seat.process and not seat.up for seat in seats),
            starting=sum(bool(seat.process) and not seat.up for seat in seats),
            working=sum(seat.up and bool(seat.held) for seat in seats),
            idle=sum(seat.up and not seat.held for seat in seats),
            under_way=tuple((unit.artefact_id, done, note) for unit, done, note in noted),
            left_s=sum(lane.ready_s.values()) + held_s + sum(seconds for seconds, _, _ in lane.expected.values()),
            waiting=len(lane.expected),
        )
