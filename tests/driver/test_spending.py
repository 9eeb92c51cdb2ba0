"""A run that reaches its budget begins nothing more, keeps what is committed, and goes on with a larger one."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from planned_toys import BASE, toy_plan
from test_run import Stages, stages

from kvray.driver import run as running
from kvray.driver import spending
from kvray.driver.seats.queue import HOST, Limits, WorkQueue
from kvray.driver.seats.state import LaneView
from kvray.driver.spending import Spending
from kvray.planning.cost import budget
from kvray.planning.cost.budget import Spent
from kvray.planning.process import Process
from kvray.planning.work import EVALUATE, FINETUNE, Lane, Nothing, Seat, Source, Unit
from kvray.store.store import Outcome, Store
from kvray.sweep.model import Runtime

__all__ = ["stages"]


def write_spent(store: Store, run: str, hours: float) -> None:
    store.write_document(f"spent/s/{run}.json", Spent(hours, gpus=True).to_bytes(run, "s", "there"))


def allowed(hours: float) -> dict[str, object]:
    return {"num_cpus": 1, "budget": {"gpu_hours": hours}}


def view(lane: str, held: int) -> LaneView:
    return LaneView(lane, 0, 1, 0, 0, held, 0, (), 0.0, 0)


# A run.


def test_a_run_whose_budget_is_spent_starts_nothing_and_a_larger_one_goes_on(
    stages: Stages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, planned = Store(tmp_path), toy_plan(runtime=allowed(2))
    write_spent(store, "before", 2.0)
    with monkeypatch.context() as patch:
        patch.setattr(running, "connect", lambda runtime: pytest.fail("Ray would start"))
        result = running.run(planned, BASE, store)
    assert result.exit_status == 3 and not result.nothing_to_do and not result.failed
    assert set(result.left) == {artefact.id for artefact in planned.artefacts} and not stages.made
    told = result.outcome()
    assert f"{len(planned.artefacts)} of {len(planned.artefacts)} artefacts of s are left: 0 made, 0 were there" in told
    larger = re.search(r"raise it: --set runtime\.budget\.gpu_hours=([\d.]+)$", told)
    assert larger, told
    again = running.run(toy_plan(runtime=allowed(float(larger[1]))), BASE, store)
    assert again.exit_status == 0 and set(again.made) == set(result.left)
    # What is whole is no matter of money.
    assert running.run(planned, BASE, store).nothing_to_do


def test_a_run_that_reaches_its_budget_ends_what_it_has_begun_and_leaves_the_rest(
    stages: Stages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spending, "EVERY_S", 0.05)
    store = Store(tmp_path)
    planned = toy_plan(runtime=allowed(2), finetune={"match": "rows", "seeds": [0, 1, 2]})
    begun: list[str] = []
    work = stages.work

    def costly(source: Source, seat: Seat) -> None:
        """Train the first finetune for as long as another run of the sweep takes to spend the rest."""
        if seat.lane != FINETUNE:
            return work(source, seat)
        source.started(0.0)
        while (unit := source.take()) is not Nothing.END:
            if isinstance(unit, Unit):
                begun.append(unit.artefact_id)
                write_spent(store, "beside", 2.5)
                time.sleep(1.0)
                stages.commit(stages.artefacts[unit.artefact_id])
                source.committed(unit)
        return None

    stages.work = costly  # type: ignore[method-assign]
    result = running.run(planned, BASE, store)
    assert len(begun) == 1 and begun[0] in result.made, "what had begun is committed"
    assert result.exit_status == 3 and not result.failed and store.documents("failures/") == []
    finetunes = {one.id for one in planned.artefacts if one.kind == "finetune"}
    assert finetunes - set(begun) <= set(result.left)
    assert set(result.made) | set(result.left) == {one.id for one in planned.artefacts}
    assert not set(result.made) & set(result.left)
    assert set(store.states(result.made).values()) == {"committed"}
    stages.work = work  # type: ignore[method-assign]
    rest = running.run(toy_plan(runtime=allowed(9), finetune=planned.sweep.finetune), BASE, store)
    assert set(rest.made) == set(result.left) and rest.exit_status == 0


def test_a_failure_under_way_is_told_beside_what_is_left(stages: Stages, tmp_path: Path) -> None:
    store, planned = Store(tmp_path), toy_plan()
    data = next(one for one in planned.artefacts if one.labels.get("dataset") == "other")
    stages.fail = {data.id}
    assert running.run(planned, BASE, store).exit_status == 1
    write_spent(store, "before", 2.0)
    again = running.run(toy_plan(runtime=allowed(1)), BASE, store)
    assert again.exit_status == 3 and set(again.left) and not again.failed


# What is counted.


def test_each_gpu_of_each_seat_counts_for_as_long_as_it_is_held(tmp_path: Path) -> None:
    now = [0.0]
    limited = Runtime.model_validate({"budget": {"gpu_hours": 1}})
    spent = Spending(Store(tmp_path), "s", "me", limited, lambda: now[0])
    gpus = {FINETUNE: 4.0, EVALUATE: 0.5}
    for seconds, finetunes, engines in ((0, 1, 0), (60, 1, 2), (120, 0, 2), (180, 0, 0), (600, 0, 0)):
        now[0] = seconds
        spent.hold([view(FINETUNE, finetunes), view(EVALUATE, engines), view("write:openai:x", 1)], gpus)
    assert spent.own == Spent((2 * 60 * 4 + 2 * 60 * 1) / 3600, gpus=True)
    assert not spent.reached
    write_spent(Store(tmp_path), "other", 0.9)
    assert Spending(Store(tmp_path), "s", "me", limited).total.hours == 0.9


def test_without_any_gpu_the_hours_of_seats_count(tmp_path: Path) -> None:
    now = [0.0]
    spent = Spending(Store(tmp_path), "s", "me", Runtime.model_validate({"budget": {"gpu_hours": 1}}), lambda: now[0])
    for seconds in (0, 1800, 3600):
        now[0] = seconds
        spent.hold([view(FINETUNE, 1), view(EVALUATE, 1)], {FINETUNE: 0.0, EVALUATE: 0.0})
    assert spent.own == Spent(2.0) and spent.reached


def test_a_run_writes_what_it_spent_once_and_one_that_held_nothing_writes_nothing(tmp_path: Path) -> None:
    store, now = Store(tmp_path), [0.0]
    with Spending(store, "s", "idle", Runtime()):
        pass
    assert store.documents("spent/s/") == []
    with Spending(store, "s", "me", Runtime(), lambda: now[0]) as spent:
        for seconds in (0, 3600):
            now[0] = seconds
            spent.hold([view(FINETUNE, 1)], {FINETUNE: 2.0})
        spent._write()
    assert budget.read(store, "s") == Spent(2.0, gpus=True), "written twice, counted once"


# The queue.


def queue_of(*cells: str) -> WorkQueue:
    queue = WorkQueue([Lane(name, lambda source, seat: None, {}) for name in (FINETUNE, EVALUATE)], Limits(3))
    for cell in cells:
        queue.add(EVALUATE, cell, [Unit(0, cell, None, (number,), 10, 1.0) for number in range(2)])
    return queue


def test_a_halted_queue_ends_what_has_begun_and_leaves_what_has_not() -> None:
    queue = queue_of("begun", "waits")
    queue.seat(Seat("one", EVALUATE))
    queue.started("one", 1.0)
    first = queue.take("one")
    assert isinstance(first, Unit)
    other = "waits" if first.artefact_id == "begun" else "begun"
    queue.halt()
    assert queue.outcomes() == [Outcome(other, None, left=True)]
    assert queue.wanted(lambda counts: True) is None, "no further seat"
    assert queue.finish("one", first) is None
    second = queue.take("one")
    assert isinstance(second, Unit) and second.artefact_id == first.artefact_id
    assert queue.finish("one", second) is not None
    queue.committed("one", second)
    assert queue.take("one") is Nothing.END
    queue.add(EVALUATE, "late", [Unit(0, "late")])
    assert queue.outcomes() == [Outcome(first.artefact_id, None), Outcome("late", None, left=True)]


def test_what_a_dead_seat_had_begun_is_left_where_no_other_seat_is() -> None:
    queue = queue_of("begun")
    queue.seat(Seat("one", EVALUATE))
    queue.started("one", 1.0)
    assert isinstance(queue.take("one"), Unit)
    queue.halt()
    assert queue.outcomes() == []
    queue.ended("one", "killed")
    assert queue.outcomes() == [Outcome("begun", None, left=True)]


def test_a_seat_holds_its_devices_from_its_first_process_on() -> None:
    queue = queue_of("cell")
    queue.seat(Seat("one", EVALUATE))
    here = Process("node", 1, "")
    queue.join("one", HOST, here)  # a slot's own process waits for the devices of its workers
    assert [(each.pending, each.held) for each in queue.view() if each.name == EVALUATE] == [(1, 0)]
    queue.join("one", "worker 0", here)
    assert [(each.pending, each.held) for each in queue.view() if each.name == EVALUATE] == [(0, 1)]


# A real one.

SWEEP = """
name: dear
base_model: kvray-tiny
datasets:
  kv: {task: simple_kv, rows: 16, dictionaries: 2}
finetune: {method: lora, epochs: 1, learning_rate: 1e-3, batch_size: 8, match: rows, seeds: [0, 1]}
evaluate:
  recall: {task: recall, questions: 5}
runtime:
  num_cpus: 1
  object_store_memory: 100_000_000
  gpu_price: 2
  budget: {gpu_hours: 0.000_01}
  trackers: tensorboard
"""


@pytest.mark.slow
def test_a_real_sweep_stops_at_its_budget_and_the_same_command_then_starts_nothing(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    file, store = tmp_path / "dear.yaml", tmp_path / "store"
    file.write_text(SWEEP)

    def kvray(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "kvray.cli", *words, "--store", str(store)]
        return subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=500, env={**os.environ, "COLUMNS": "120"}
        )

    first = kvray("run", str(file))
    assert first.returncode == 3, first.stdout + first.stderr
    counted = re.search(r"^(\d+) of 7 artefacts of dear are left: (\d+) made, 0 were there$", first.stdout, re.M)
    assert counted, first.stdout
    assert 1 <= int(counted[1]) <= 5 and int(counted[1]) + int(counted[2]) == 7
    assert "runtime.budget is spent: " in first.stdout and "raise it: --set runtime.budget.gpu_hours=" in first.stdout
    state = json.loads(kvray("status", "dear", "--json").stdout)
    assert state["committed"] == int(counted[2]) and state["failed"] == 0
    assert state["spent_hours"] > 0.000_01 and state["hours_of"] == "seats"
    # Trackers have what is committed.
    finetunes = [each for each in state["artefacts"] if each["kind"] == "finetune" and each["state"] == "committed"]
    assert "kvray: tensorboard: tensorboard --logdir " in first.stderr
    assert len(list((store / "tensorboard" / "dear").glob("kv-lora-s*/events*"))) == len(finetunes)
    again = kvray("run", str(file))
    assert again.returncode == 3 and "starting a local Ray" not in again.stderr
    assert again.stdout.split("runtime.budget is spent: ")[1] == first.stdout.split("runtime.budget is spent: ")[1]
