"""The work queue: every unit is done, whatever dies, and a seat more is started only where it helps."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import pytest

from kvray.driver.seats.attempts import SETTLED_S, Attempts
from kvray.driver.seats.queue import HOST, Limits, WorkQueue
from kvray.planning.process import Process
from kvray.planning.work import EVALUATE, FINETUNE, Lane, Nothing, Seat, Source, Unit
from kvray.store.manifest import FileEntry


def nothing(source: Source, seat: Seat) -> None:
    """Stand for the work of a lane, which these tests do themselves."""


def lanes(start_s: float = 20.0) -> list[Lane]:
    return [Lane(name, nothing, {"CPU": 1}, start_s=start_s) for name in (FINETUNE, EVALUATE)]


def units(model: str | None, artefact: str, count: int, seconds: float = 10.0) -> list[Unit]:
    return [Unit(0, artefact, model, (number,), 256, seconds) for number in range(count)]


def entry(unit: Unit) -> list[FileEntry]:
    return [FileEntry(f"chunk-{number}", 256, 1, "") for number in unit.chunks or ()]


def everywhere(counts: Mapping[str, int]) -> bool:
    return True


def started(queue: WorkQueue, name: str, lane: str = EVALUATE) -> str:
    queue.seat(Seat(name, lane))
    queue.started(name, 20.0)
    return name


@pytest.mark.parametrize("seed", range(20))
def test_every_unit_is_done_and_every_cell_committed_once_whatever_dies(seed: int) -> None:
    rng = random.Random(seed)
    queue = WorkQueue(lanes(), Limits(1000))
    sizes = {f"cell-{number}": rng.randint(0, 6) for number in range(12)}
    for name, size in sizes.items():
        model = rng.choice([None, "a", "b"])
        made = units(model, name, size) or [Unit(0, name, model, ())]
        queue.expect(EVALUATE, name, 1.0, 0.0, soon=True)
        queue.add(EVALUATE, name, made)
    queue.close()
    stored: Counter[tuple[str, str]] = Counter()
    committed: Counter[str] = Counter()
    alive: list[str] = []
    held: dict[str, list[Unit]] = {}
    born = 0
    for _ in range(3000):
        if queue.over:
            break
        if len(alive) < 3:
            alive.append(started(queue, f"seat-{born}"))
            held[alive[-1]] = []
            born += 1
        seat = rng.choice(alive)
        if rng.random() < 0.15:
            queue.ended(seat, "killed")
            alive.remove(seat)
        elif not held[seat] or rng.random() < 0.4:
            taken = queue.take(seat)
            if isinstance(taken, Unit):
                held[seat].append(taken)
            elif not held[seat]:
                assert taken is Nothing.END
                queue.ended(seat)
                alive.remove(seat)
        else:
            unit = held[seat].pop(rng.randrange(len(held[seat])))
            files = queue.finish(seat, unit, entry(unit))
            stored.update((unit.artefact_id, each.name) for each in entry(unit))
            if files is not None and rng.random() < 0.7:
                assert {each.name for each in files} == {f"chunk-{n}" for n in range(sizes[unit.artefact_id])}
                queue.committed(seat, unit)
                committed[unit.artefact_id] += 1
            elif files is not None:
                queue.ended(seat, "killed between the last chunk and the commit")
                alive.remove(seat)
    assert queue.over
    assert committed == dict.fromkeys(sizes, 1)
    assert {outcome.artefact_id for outcome in queue.outcomes() if outcome.error is None} == set(sizes)
    assert {cell: sum(1 for at in stored if at[0] == cell) for cell in sizes} == sizes


def test_a_unit_that_kills_its_seats_fails_its_cell_alone() -> None:
    queue = WorkQueue(lanes(), Limits(2))
    queue.add(EVALUATE, "deadly", units("a", "deadly", 1))
    queue.add(EVALUATE, "good", units("b", "good", 1))
    queue.close()
    for number in range(3):
        seat = started(queue, f"seat-{number}")
        unit = queue.take(seat, holding=["a"])
        assert isinstance(unit, Unit)
        assert unit.artefact_id == "deadly"
        queue.ended(seat, "out of memory")
    (outcome,) = queue.outcomes()
    assert outcome.artefact_id == "deadly"
    assert outcome.error == "out of memory"
    unit = queue.take(started(queue, "last"))
    assert isinstance(unit, Unit)
    assert unit.artefact_id == "good"


def test_seats_that_never_start_fail_their_lane_and_no_other() -> None:
    queue = WorkQueue(lanes(), Limits(1))
    for name in ("one", "two"):
        queue.add(EVALUATE, name, units(None, name, 2))
    queue.add(FINETUNE, "finetune", [Unit(0, "finetune", rows=1)])
    for number in range(2):
        queue.seat(Seat(f"seat-{number}", EVALUATE))
        queue.take(f"seat-{number}")
        queue.ended(f"seat-{number}", "no such library")
    assert {each.artefact_id: each.error for each in queue.outcomes()} == dict.fromkeys(
        ("one", "two"), "no such library"
    )
    queue.add(EVALUATE, "three", units(None, "three", 1))
    assert [each.error for each in queue.outcomes()] == ["no such library"]
    assert queue.wanted(everywhere) == FINETUNE


def test_another_process_of_a_seat_gets_what_the_earlier_held_which_ray_ended_itself() -> None:
    queue = WorkQueue(lanes(), Limits(0))
    queue.add(FINETUNE, "finetune", [Unit(0, "finetune", rows=1)])
    queue.seat(Seat("slot", FINETUNE))
    first = queue.take("slot", process="0")
    for process in range(1, 5):
        queue.started("slot", 5.0)
        assert queue.take("slot", process=str(process)) == first
    assert not queue.outcomes()


def test_a_told_death_counts_once_gives_its_reason_and_is_free_where_the_node_was_taken_away() -> None:
    queue = WorkQueue(lanes(), Limits(1))
    queue.add(FINETUNE, "finetune", units(None, "finetune", 1))
    started(queue, "slot", FINETUNE)
    for process in range(3):
        assert isinstance(queue.take("slot", process=str(process)), Unit)
        queue.died("slot", "the node was taken away", preempted=True)
        queue.started("slot", 1.0)
    for process in range(3, 5):
        assert isinstance(queue.take("slot", process=str(process)), Unit) and not queue.outcomes()
        queue.died("slot", "out of memory")
        queue.started("slot", 1.0)
    assert [(each.artefact_id, each.error) for each in queue.outcomes()] == [("finetune", "out of memory")]


def test_a_worker_that_never_takes_a_unit_fails_its_lane_after_its_retries() -> None:
    queue = WorkQueue(lanes(), Limits(1))
    queue.add(FINETUNE, "finetune", units(None, "finetune", 1))
    queue.seat(Seat("slot", FINETUNE))
    queue.died("slot", "no such library")
    queue.ended("slot", "its workers died: no such library")
    assert not queue.outcomes()
    queue.seat(Seat("slot-2", FINETUNE))
    queue.died("slot-2", "no such library")
    assert [each.error for each in queue.outcomes()] == ["no such library"]


def test_a_seat_keeps_to_what_it_has_loaded_and_spreads_over_models_otherwise() -> None:
    queue = WorkQueue(lanes(), Limits(0))
    for model in ("a", "b"):
        queue.add(EVALUATE, model, units(model, model, 4))
    one, two = started(queue, "one"), started(queue, "two")
    mine = [queue.take(one, holding=["a"]) for _ in range(2)]
    assert [each.model for each in mine if isinstance(each, Unit)] == ["a", "a"]
    theirs = queue.take(two)
    assert isinstance(theirs, Unit)
    assert theirs.model == "b"


@pytest.mark.parametrize(("seconds", "seats"), [(1.0, 1), (15.0, 3), (1000.0, 4)])
def test_one_more_seat_starts_while_the_work_is_worth_its_start(seconds: float, seats: int) -> None:
    queue = WorkQueue(lanes(start_s=20.0), Limits(0))
    for number in range(4):
        queue.add(FINETUNE, f"f{number}", [Unit(0, f"f{number}", seconds=seconds)])
    count = 0
    while (lane := queue.wanted(everywhere)) is not None:
        queue.seat(Seat(f"{lane}-{count}", lane))
        count += 1
    assert count == seats


def test_devices_are_kept_for_more_pressing_work_that_is_about_to_be_ready() -> None:
    queue = WorkQueue(lanes(), Limits(0))

    def two(counts: Mapping[str, int]) -> bool:
        return sum(counts.values()) <= 2

    queue.add(EVALUATE, "base", units(None, "base", 40))
    for name in ("f1", "f2"):
        queue.expect(FINETUNE, name, 100.0, 50.0, soon=True)
    assert queue.wanted(two) is None  # both places are the finetunes'
    queue.expect(FINETUNE, "f2", 100.0, 50.0, soon=False)
    assert queue.wanted(two) == EVALUATE


def test_an_idle_seat_ends_for_others_after_a_start_s_time_and_waits_otherwise() -> None:
    now = [0.0]
    queue = WorkQueue(lanes(start_s=20.0), Limits(0), clock=lambda: now[0])
    seat = started(queue, "engine")
    queue.expect(EVALUATE, "later", 10.0, 0.0, soon=False)
    assert queue.take(seat) is Nothing.LATER
    now[0] = 1000.0
    assert queue.take(seat) is Nothing.LATER
    queue.add(FINETUNE, "f", [Unit(0, "f", seconds=100.0)])
    assert queue.wanted(lambda counts: sum(counts.values()) <= 1) is None
    assert queue.take(seat) is Nothing.END


def test_an_idle_seat_ends_for_one_that_gets_no_devices_though_there_seems_to_be_room() -> None:
    now = [0.0]
    queue = WorkQueue(lanes(start_s=20.0), Limits(1), clock=lambda: now[0])
    seat = started(queue, "engine")
    queue.expect(EVALUATE, "later", 10.0, 0.0, soon=False)
    assert queue.take(seat) is Nothing.LATER
    now[0] = 1000.0
    queue.add(FINETUNE, "f", [Unit(0, "f", seconds=100.0)])
    assert queue.wanted(everywhere) == FINETUNE
    queue.seat(Seat("slot", FINETUNE))
    now[0] = 1019.0
    queue.wanted(everywhere)
    assert queue.take(seat) is Nothing.LATER
    now[0] = 1020.0
    queue.wanted(everywhere)
    assert queue.take(seat) is Nothing.END


def test_an_idle_seat_ends_for_one_whose_node_was_lost() -> None:
    now = [0.0]
    queue = WorkQueue(lanes(start_s=20.0), Limits(1), clock=lambda: now[0])
    engine, slot = started(queue, "engine"), started(queue, "slot", FINETUNE)
    queue.expect(EVALUATE, "later", 10.0, 0.0, soon=False)
    queue.add(FINETUNE, "f", [Unit(0, "f", seconds=100.0)])
    assert isinstance(queue.take(slot, process="1"), Unit)
    assert queue.take(engine) is Nothing.LATER
    now[0] = 20.0
    queue.wanted(everywhere)
    assert queue.take(engine) is Nothing.LATER
    queue.died(slot, "its node was lost", preempted=True)
    queue.wanted(everywhere)
    assert queue.take(engine) is Nothing.END


def test_a_failed_cell_takes_its_other_units_along() -> None:
    queue = WorkQueue(lanes(), Limits(0))
    queue.add(EVALUATE, "bad", units("a", "bad", 3))
    queue.close()
    one, two = started(queue, "one"), started(queue, "two")
    first, second = queue.take(one), queue.take(two)
    assert isinstance(first, Unit)
    assert isinstance(second, Unit)
    queue.failed(one, first, "no such adapter")
    assert queue.finish(two, second, entry(second)) is None
    assert queue.take(one) is Nothing.END
    assert queue.over
    assert [(each.artefact_id, each.error) for each in queue.outcomes()] == [("bad", "no such adapter")]


def test_a_unit_given_back_waits_for_a_longer_engine() -> None:
    queue = WorkQueue(lanes(), Limits(0))
    queue.add(EVALUATE, "long", units(None, "long", 1))
    short = started(queue, "short")
    unit = queue.take(short)
    assert isinstance(unit, Unit)
    queue.give_back(short, unit, 4096)
    queue.ended(short)
    assert queue.wanted(everywhere) == EVALUATE
    longer = started(queue, "longer")
    assert queue.length(longer) == 4096
    assert queue.take(longer) == unit


def test_a_unit_that_gets_on_between_deaths_never_fails_and_what_it_stored_is_not_done_again() -> None:
    queue = WorkQueue(lanes(), Limits(retries=1))
    queue.add(EVALUATE, "cell", [Unit(0, "cell", None, tuple(range(10)), 10 * 256, 100.0)])
    queue.close()
    for number in range(10):
        seat = started(queue, f"seat-{number}")
        unit = queue.take(seat)
        assert isinstance(unit, Unit) and unit.chunks == tuple(range(number, 10))
        assert unit.seconds == pytest.approx(10.0 * (10 - number)) and unit.rows == 256 * (10 - number)
        queue.saved(seat, unit, number, *entry(replace(unit, chunks=(number,))))
        queue.ended(seat, "killed")
        (view,) = (each for each in queue.view() if each.name == EVALUATE)
        assert (view.done, view.total) == (256 * (number + 1), 2560)
    seat = started(queue, "last")
    unit = queue.take(seat)
    assert isinstance(unit, Unit) and unit.chunks == ()
    files = queue.finish(seat, unit)
    assert files is not None and {each.name for each in files} == {f"chunk-{number}" for number in range(10)}
    queue.committed(seat, unit)
    assert [each.error for each in queue.outcomes()] == [None] and queue.over


def test_a_finetune_has_all_its_attempts_from_its_last_checkpoint_on() -> None:
    queue = WorkQueue(lanes(), Limits(retries=2))
    queue.add(FINETUNE, "f", [Unit(0, "f", rows=1)])
    queue.seat(Seat("slot", FINETUNE))
    for step in [10, None, 20, None, 30, None]:
        unit = queue.take("slot", process=str(step))
        queue.started("slot", 1.0)
        assert isinstance(unit, Unit)
        if step:
            queue.saved("slot", unit, step)
        assert queue.died("slot", f"died after {step}") and not queue.outcomes()
    queue.take("slot", process="last")
    queue.started("slot", 1.0)
    assert queue.died("slot", "died again")
    assert [(each.artefact_id, each.error) for each in queue.outcomes()] == [("f", "died again")]


def test_a_final_death_fails_what_was_held_alone_and_a_refused_lane_ends_its_seat() -> None:
    queue = WorkQueue(lanes(), Limits(retries=1))
    for name in ("large", "small"):
        queue.add(FINETUNE, name, [Unit(0, name, rows=1, seconds=2.0 if name == "large" else 1.0)])
    queue.seat(Seat("slot", FINETUNE))
    queue.take("slot", process="1")
    queue.started("slot", 1.0)
    assert queue.died("slot", "out of memory", final=True)
    assert [(each.artefact_id, each.error) for each in queue.outcomes()] == [("large", "out of memory")]
    assert queue.died("slot", "no such library")
    assert not queue.died("slot", "no such library"), "nothing of this lane can be done"
    assert [(each.artefact_id, each.error) for each in queue.outcomes()] == [("small", "no such library")]


def test_a_seat_that_is_silent_is_hung_one_that_waits_for_devices_or_starts_is_not() -> None:
    now = [0.0]
    queue = WorkQueue(lanes(), Limits(retries=1, stall_s=60.0, start_s=600.0), clock=lambda: now[0])
    process = Process("node", 1, 0.0)

    def after(seconds: float, *beats: str) -> list[tuple[str, str]]:
        """Let time pass, as the driver looks every second; return (seat, why) of those that hang."""
        hung = []
        for _ in range(round(seconds)):
            now[0] += 1.0
            hung += [(each.seat, each.why) for each in queue.hung()]
            for seat in beats:
                queue.beat(seat)
        return hung

    queue.add(EVALUATE, "cell", units(None, "cell", 2))
    for name, lane in (("engine", EVALUATE), ("slot", FINETUNE)):
        queue.seat(Seat(name, lane))
    queue.join("slot", HOST, process)
    assert after(10_000) == [], "nothing has come, or only what waits for workers"
    queue.join("engine", "engine", process)
    assert after(500) == [], "an engine may take long to start"
    queue.started("engine", 500.0)
    first = queue.take("engine")
    assert after(59) == []
    queue.beat("engine")
    assert after(500, "engine") == []
    now[0] += 10_000.0
    assert queue.hung() == [], "this process was stopped, not the engine"
    queue.beat("engine")
    assert after(60) == [("engine", "no progress for 1 minutes (runtime.stall_minutes)")]
    assert after(59) == [] and len(after(1)) == 1, "told again if it was not ended"
    queue.ended("engine", "the process was killed")
    assert queue.take(started(queue, "other")) == first
    queue.ended("other")
    queue.join("slot", "worker 0", process)
    assert after(600) == [("slot", "it was not up for 10 minutes (runtime.start_minutes)")]
    assert not queue.died("slot", "killed")


def test_deaths_of_lost_nodes_never_count_however_late_ray_tells() -> None:
    now, lost = [0.0], set[str]()
    attempts = Attempts(1, lambda: lost, home="head", clock=lambda: now[0])
    for number in range(10):
        assert attempts.died(["unit"], [f"spot-{number}"]) == set()
        now[0] += 15.0
        lost.add(f"spot-{number}")
    for _ in range(2):
        assert attempts.died(["unit"], ["sound"]) == set()
        now[0] += SETTLED_S
    assert attempts.died(["unit"], ["sound"]) == {"unit"}, "two deaths have counted, on a node that is there"
    assert attempts.died(["other"], ["head"]) == set()
    assert attempts.died(["other"], ["head"]) == {"other"}, "the driver's own node cannot have been lost"
    attempts.progress("other")
    assert attempts.died(["other"], ["head"]) == set()
