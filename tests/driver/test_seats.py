"""Seats on real Ray Tune: work is done once whatever dies, in as many processes as there is room for."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from kvray.driver.seats.demand import Room
from kvray.driver.seats.dispatcher import Opening, Seats
from kvray.driver.seats.placement import Capacity, Place
from kvray.driver.seats.queue import Limits
from kvray.driver.seats.state import LaneView
from kvray.errors import CellError, MemoryExhaustedError, ResourceError
from kvray.finetune.placement import Shape
from kvray.planning.work import EVALUATE, FINETUNE, Lane, Nothing, Seat, Source, Unit
from kvray.store.store import Outcome, Store

pytestmark = pytest.mark.slow
LIMIT_S = 300.0
STALL_S = 15.0


def room_for_two(capacity: Capacity, generating: bool) -> Room:
    return lambda counts: sum(counts.values()) <= 2


class Stand:
    """Work that notes each unit in a folder: who did it. ``deadly`` units kill their process the first time."""

    def __init__(self, folder: Path, deadly: Sequence[str] = (), refuses: bool = False) -> None:
        self.folder, self.deadly, self.refuses = folder, deadly, refuses

    def __call__(self, source: Source, seat: Seat) -> None:
        if self.refuses:
            raise CellError("no such model")
        source.started(0.1)
        while (unit := source.take()) is not Nothing.END:
            if unit is Nothing.LATER:
                continue
            name = f"{unit.artefact_id}-{unit.number}"
            if unit.artefact_id == "large":
                raise MemoryExhaustedError("lower runtime.max_model_len")
            if unit.artefact_id in ("stopped", "stuck") and not (self.folder / f"{name}.hung").exists():
                (self.folder / f"{name}.hung").touch()
                os.kill(os.getpid(), signal.SIGSTOP) if unit.artefact_id == "stopped" else wait_for_ever()
            if unit.artefact_id in self.deadly and not (self.folder / f"{name}.died").exists():
                (self.folder / f"{name}.died").touch()
                os._exit(1)
            time.sleep(unit.seconds)
            with (self.folder / name).open("a") as file:
                file.write(f"{os.getpid()}\n")
            if seat.lane == FINETUNE or source.finish(unit) is not None:
                source.committed(unit)


def wait_for_ever() -> None:
    threading.Event().wait()


def opening(lane: str, work: Stand) -> Opening:
    place = Place(Shape(1, 0.5, 0.0), threads=1)
    return Opening(Lane(lane, work, place.needs, start_s=1.0), Seat("", lane), place, {"CPU": 0.5})


@pytest.fixture
def seats(ray_two_cpus: None, tmp_path: Path) -> Iterator[Callable[..., Seats]]:
    import ray
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the processes of seats cannot import a test
    opened: list[Seats] = []

    def open_them(works: Mapping[str, Stand]) -> Seats:
        opened.append(
            Seats(
                [opening(lane, work) for lane, work in works.items()],
                Limits(2, stall_s=STALL_S),
                room_for_two,
                Capacity(),
                Store(tmp_path / "store"),
            )
        )
        return opened[-1]

    yield open_them
    for each in opened:
        each.close(wait=True)
    deadline = time.monotonic() + 20
    while ray.available_resources().get("CPU", 0.0) < 2:
        assert time.monotonic() < deadline, "what dead seats and dispatchers held is free again"
        time.sleep(0.2)


def until(seats: Seats, count: int, look: Callable[[Sequence[LaneView]], None] = lambda views: None) -> list[Outcome]:
    ended: list[Outcome] = []
    deadline = time.monotonic() + LIMIT_S
    while len(ended) < count:
        assert time.monotonic() < deadline, ended
        outcomes, views = seats.poll()
        ended += outcomes
        look(views)
        time.sleep(0.05)
    return ended


def add(lane: str, name: str, units: int, seconds: float = 0.1) -> tuple[str, tuple[object, ...]]:
    chunks = [None] if lane == FINETUNE else [(number,) for number in range(units)]
    return "add", (lane, name, [Unit(0, name, None, chunk, 1, seconds) for chunk in chunks])


def test_lanes_side_by_side_and_a_seat_that_dies(seats: Callable[..., Seats], tmp_path: Path) -> None:
    stand = Stand(tmp_path, deadly=["f2", "cell"])
    running = seats({FINETUNE: stand, EVALUATE: stand})
    running.change([add(FINETUNE, "f1", 1), add(FINETUNE, "f2", 1), add(EVALUATE, "cell", 3)])
    most = 0

    def look(views: Sequence[LaneView]) -> None:
        nonlocal most
        most = max(most, sum(view.held + view.pending for view in views))

    ended = until(running, 3, look)
    assert {(each.artefact_id, each.error) for each in ended} == {("f1", None), ("f2", None), ("cell", None)}
    done = {path.name: path.read_text().split() for path in tmp_path.iterdir() if path.suffix != ".died"}
    assert len(done) == 5 and all(len(by) == 1 for by in done.values()), done
    assert len(list(tmp_path.glob("*.died"))) == 4 and most <= 2
    started = time.monotonic()
    running.close(wait=True)
    assert time.monotonic() - started < 15, "idle seats end by themselves"


def test_a_lane_that_can_do_nothing_fails_whole_and_the_other_goes_on(
    seats: Callable[..., Seats], tmp_path: Path
) -> None:
    running = seats({FINETUNE: Stand(tmp_path), EVALUATE: Stand(tmp_path, refuses=True)})
    running.change([add(FINETUNE, "f1", 1), add(EVALUATE, "one", 2), add(EVALUATE, "two", 1)])
    ended = {each.artefact_id: each.error for each in until(running, 3)}
    assert ended == {"f1": None, "one": "no such model", "two": "no such model"}


def test_seats_that_hang_are_ended_with_their_stack_traces_and_others_do_their_work(
    seats: Callable[..., Seats], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    running = seats({EVALUATE: Stand(tmp_path)})
    running.change([add(EVALUATE, name, 1, 2.0) for name in ("stopped", "stuck", "good")])
    ended = {each.artefact_id: each.error for each in until(running, 3)}
    assert ended == dict.fromkeys(["stopped", "stuck", "good"])
    done = [path.read_text().split() for path in tmp_path.iterdir() if path.is_file() and path.suffix != ".hung"]
    assert len(done) == 3 and all(len(by) == 1 for by in done), "each unit was done once"
    notes = [path.read_text() for path in (tmp_path / "store/.work/stalls").iterdir()]
    (stopped,) = (each for each in notes if "a stopped process (SIGSTOP) writes no stack traces" in each)
    (stuck,) = (each for each in notes if each != stopped)
    assert "is stopped" in stopped and "in wait_for_ever" in stuck and "(most recent call first)" in stuck
    said = capsys.readouterr().err
    assert said.count("no progress for 0.25 minutes (runtime.stall_minutes); it is ended") == 2
    assert f"stack traces in {tmp_path}/store/.work/stalls/evaluate-" in said


def test_what_is_too_large_for_a_device_fails_at_once_and_alone(seats: Callable[..., Seats], tmp_path: Path) -> None:
    running = seats({EVALUATE: Stand(tmp_path)})
    running.change([add(EVALUATE, "large", 1, 5.0), add(EVALUATE, "small", 1)])
    ended = {each.artefact_id: each.error for each in until(running, 2)}
    assert ended == {"large": "lower runtime.max_model_len", "small": None}


def test_a_dispatcher_that_dies_is_started_anew_with_what_is_left(seats: Callable[..., Seats], tmp_path: Path) -> None:
    import ray

    running = seats({EVALUATE: Stand(tmp_path)})
    running.change([add(EVALUATE, "first", 1), add(EVALUATE, "long", 40)])
    assert until(running, 1)[0].artefact_id == "first"
    ray.kill(running._dispatcher)
    (ended,) = until(running, 1)
    assert (ended.artefact_id, ended.error) == ("long", None)
    for _ in range(2):
        ray.kill(running._dispatcher)
        assert running.poll() == ([], []), "it is started anew, twice since something was done"
    ray.kill(running._dispatcher)
    with pytest.raises(ResourceError, match="Ray Tune ended"):
        running.poll()
