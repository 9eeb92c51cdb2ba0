"""When one more seat is worth its start, and for which lane. Pure.

One more seat is worth its start, of ``s`` seconds, if it ends the lane's ``W`` seconds of work sooner: with ``n`` seats
they take ``W / n``, with one more ``s`` until it helps and then ``(W - n s) / (n + 1)``, which is sooner if
``W > n s``.
"""

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping

from kvray.driver.seats.state import LaneState, LaneView, SeatState

Room = Callable[[Mapping[str, int]], bool]
"""Returns whether so many seats, by lane, may exist at the same time."""


def wanted(
    lanes: Mapping[str, LaneState], seats: Collection[SeatState], room: Room, generating: bool, now: float
) -> tuple[str | None, str | None]:
    """Return the lane that is to get one more seat at ``now``, and what idle seats are in the way of; None if none is.

    ``generating``: datasets are being made, which need a CPU; a seat in their way is in the way of "generate".
    """
    counts = Counter(seat.lane for seat in seats)
    starving = "generate" if generating and not room(counts) else _unplaced(lanes, seats, now)
    first = {name: _first(lane) for name, lane in lanes.items()}
    for name in sorted(first, key=lambda name: -first[name]):
        target = _target(lanes[name], [seat for seat in seats if seat.lane == name])
        fits = room(counts + Counter({name: 1}))
        if counts[name] < target and lanes[name].ready:
            if fits:
                return name, starving
            starving = starving or name
        # Keep what this lane will want in a moment from lanes whose work is less pressing.
        while counts[name] < target and room(counts + Counter({name: 1})):
            counts[name] += 1
    return None, starving


def view(name: str, lane: LaneState, seats: Collection[SeatState]) -> LaneView:
    """Return what a lane does now, given all seats."""
    seats = [seat for seat in seats if seat.lane == name]
    noted = [(seat.held[number], *state) for seat in seats for number, state in seat.progress.items()]
    held_s = sum(unit.seconds for seat in seats for unit in seat.held.values())
    return LaneView(
        name=name,
        done=lane.done + sum(done for _, done, _ in noted),
        total=lane.total,
        pending=sum(not seat.placed for seat in seats),
        starting=sum(seat.placed and not seat.up for seat in seats),
        working=sum(seat.up and bool(seat.held) for seat in seats),
        idle=sum(seat.up and not seat.held for seat in seats),
        under_way=tuple((unit.artefact_id, done, note) for unit, done, note in noted),
        left_s=lane.ready.seconds + held_s + sum(seconds for seconds, _, _ in lane.expected.values()),
        waiting=len(lane.expected),
    )


def _unplaced(lanes: Mapping[str, LaneState], seats: Collection[SeatState], now: float) -> str | None:
    """Return a lane with work whose seat has waited for devices for as long as a start takes, None if none has.

    By what nodes have in all there was room, but what is free is in pieces, others use it, or nodes are lost.
    """
    for seat in seats:
        lane = lanes[seat.lane]
        waits = now - seat.since >= lane.start_s if not seat.process else seat.dead
        if waits and lane.ready:
            return seat.lane
    return None


def _first(lane: LaneState) -> float:
    """Return the highest priority of work that is ready or will be soon; -1 if there is none."""
    return max([lane.ready.priority, *(priority for _, priority, soon in lane.expected.values() if soon)])


def _target(lane: LaneState, seats: Collection[SeatState]) -> int:
    """Return how many seats a lane's work is worth, which has ``seats`` now."""
    held = [unit for seat in seats for unit in seat.held.values()]
    soon = [seconds for seconds, _, soon in lane.expected.values() if soon]
    seconds = lane.ready.seconds + sum(unit.seconds for unit in held) + sum(soon)
    count = len(lane.ready) + len(held) + len(soon)
    if not count or lane.refused is not None:
        return 0
    worth = max(1, math.ceil(seconds / lane.start_s)) if lane.start_s > 0 else count
    return min(count, worth, lane.lane.most or count)
