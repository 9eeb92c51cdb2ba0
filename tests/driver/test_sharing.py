"""Several runs of one store: each artefact is made once, by one of them; all end well, whoever dies."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from planned_toys import BASE, commit, toy_plan
from s3_server import endpoint, store
from test_run import Stages
from toy_tasks import Toy

from kvray.driver import run as running
from kvray.driver import sharing
from kvray.driver.connection import Connection
from kvray.driver.run import Result
from kvray.driver.seats.placement import Capacity
from kvray.planning import inputs
from kvray.planning.artefacts import Artefact, Plan
from kvray.store import leases
from kvray.store.leases import Leases
from kvray.store.store import Store
from kvray.sweep.model import Runtime
from kvray.tasks.base import REGISTRY

__all__ = ["endpoint", "store"]


class Driver(Stages):
    """Stages of one run, that take their time over each artefact; ``hold`` stops them before a commit."""

    def __init__(self) -> None:
        super().__init__()
        self.hold = threading.Event()
        self.hold.set()
        self.at: Artefact | None = None

    def commit(self, artefact: Artefact) -> None:
        self.at = artefact
        time.sleep(0.03)
        self.hold.wait()
        super().commit(artefact)


class Drivers:
    """Runs of one store, each in a thread of its own with stages of its own."""

    def __init__(self) -> None:
        self.mine = threading.local()
        self.pool = ThreadPoolExecutor(8)

    def start(self, planned: Plan, store: Store) -> tuple[Driver, Future[Result]]:
        driver = Driver()

        def run() -> Result:
            self.mine.driver = driver
            return running.run(planned, BASE, Store(store.uri))

        return driver, self.pool.submit(run)


@pytest.fixture
def drivers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Drivers]:
    @contextlib.contextmanager
    def no_cluster(runtime: Runtime) -> Iterator[Connection]:
        yield Connection(local=True, ends=True)

    def of_this(name: str) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            return getattr(made.mine.driver, name)(*given)

        return call

    made = Drivers()
    monkeypatch.setitem(REGISTRY, "toy", Toy)
    monkeypatch.setattr(inputs, "resolve", lambda name, tokenizer=None: BASE)
    monkeypatch.setattr(running, "connect", no_cluster)
    monkeypatch.setattr(running, "Cluster", lambda local: SimpleNamespace(capacity=Capacity, local=local))
    monkeypatch.setattr(running, "Generation", of_this("generation"))
    monkeypatch.setattr(running, "open_lanes", of_this("lanes"))
    monkeypatch.setattr(leases, "BEAT_S", 0.5)
    monkeypatch.setattr(leases, "LOOK_S", 0.05)
    monkeypatch.setattr(sharing, "CHANGE_S", 0.05)
    yield made
    made.pool.shutdown()


def seeds(number: int, **changes: Any) -> Plan:
    return toy_plan(finetune={"seeds": list(range(number)), "match": "rows"}, **changes)


def check(store: Store, planned: Plan, *ended: tuple[Driver, Result]) -> None:
    """Check that all is there, that nothing was made twice, and that every run counted right."""
    ids = {artefact.id for artefact in planned.artefacts}
    assert set(store.states(ids, verify=True).values()) == {"committed"}
    made = Counter(one for driver, _ in ended for one in driver.made)
    assert set(made) == ids and set(made.values()) == {1}
    for driver, result in ended:
        assert not result.failed and sorted(result.made) == sorted(driver.made)
        assert not set(result.made) & set(result.elsewhere)
        assert len(result.made) + len(result.elsewhere) + result.cached == len(result_ids(result, planned))
    ledger, _, _ = leases.Watch(store).look()
    assert ledger.runs == {}


def result_ids(result: Result, planned: Plan) -> set[str]:
    document = result.store.plan_document(result.sweep.name)
    return {each["id"] for each in document["artefacts"]}


def test_two_runs_of_one_sweep_share_it(drivers: Drivers, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    planned = seeds(6)
    started = [drivers.start(planned, store) for _ in range(2)]
    ended = [(driver, future.result(120)) for driver, future in started]
    check(store, planned, *ended)
    assert any(result.elsewhere for _, result in ended)
    said = capsys.readouterr().err
    assert "of s on " in said and "of these; waiting for" in said
    assert any("made by another run" in result.outcome() for _, result in ended)
    assert running.run(planned, BASE, store).nothing_to_do


def test_a_second_run_waits_for_what_the_first_makes_and_takes_the_rest(drivers: Drivers, tmp_path: Path) -> None:
    store, few = Store(tmp_path), seeds(1)
    more = seeds(1, name="more", mixtures={"ours": {"ours": 1}, "both": {"ours": 1, "other": 1}})
    first, one = drivers.start(few, store)
    first.hold.clear()
    while first.at is None:
        time.sleep(0.01)
    second, two = drivers.start(more, store)
    time.sleep(0.5)
    assert second.made == [] and not two.done()
    first.hold.set()
    ended = [(first, one.result(60)), (second, two.result(60))]
    shared = {artefact.id for artefact in few.artefacts} & {artefact.id for artefact in more.artefacts}
    assert shared <= {*first.made, *second.made}
    assert Counter([*first.made, *second.made]).most_common(1)[0][1] == 1
    assert not any(result.failed for _, result in ended)
    assert set(store.states({artefact.id for artefact in more.artefacts}).values()) == {"committed"}


def test_what_the_first_fails_at_the_second_tries(drivers: Drivers, tmp_path: Path) -> None:
    store, planned = Store(tmp_path), toy_plan()
    finetune = next(one for one in planned.artefacts if one.kind == "finetune")
    first, one = drivers.start(planned, store)
    first.fail = {finetune.id}
    second, two = drivers.start(planned, store)
    second.fail = {finetune.id}
    assert finetune.id in one.result(60).failed and finetune.id in two.result(60).failed
    third = drivers.start(planned, store)[1].result(60)
    assert finetune.id in third.made and not third.failed


def test_what_a_dead_run_held_is_made_after_some_beats(drivers: Drivers, store: Store) -> None:
    planned = toy_plan()
    gone = Leases(store, "s", beat_s=0.3)
    gone.me = leases.replace(gone.me, process=None)
    gone._put_beat()
    gone._joined = True
    gone.take([artefact.id for artefact in planned.artefacts])
    driver, future = drivers.start(planned, store)
    assert not future.result(60).failed
    assert sorted(driver.made) == sorted(artefact.id for artefact in planned.artefacts)


def test_a_run_that_was_taken_for_dead_leaves_what_another_took(drivers: Drivers, tmp_path: Path) -> None:
    store, planned = Store(tmp_path), seeds(2)
    driver, future = drivers.start(planned, store)
    while driver.at is None or driver.at.kind != "finetune":
        time.sleep(0.005)
    driver.hold.clear()
    time.sleep(0.2)
    with Leases(store, "thief", beat_s=5.0) as thief:
        # As it would be if the run had been suspended.
        thief._dead = [holder for holder in thief._ledger.runs.values() if holder.run != thief.me.run]
        held = [one.id for one in planned.artefacts if one.kind == "finetune" and one.id not in driver.made]
        thief._change(set(held))
        stolen = [one for one in held if one in thief._mine]
        assert stolen
        time.sleep(0.5)
        for one in planned.artefacts:
            if one.id in stolen:
                commit(store, one)
                thief.give_back(one.id)
        driver.hold.set()
    result = future.result(60)
    assert not result.failed
    assert set(store.states([one.id for one in planned.artefacts], verify=True).values()) == {"committed"}
    assert len(result.made) + len(result.elsewhere) == len(planned.artefacts)


def test_a_second_run_on_the_same_gpus_waits_for_the_first_to_end(
    drivers: Drivers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path)
    monkeypatch.setattr(running, "gpus", lambda runtime: ["0"])
    first, one = drivers.start(toy_plan(), store)
    while first.at is None:
        time.sleep(0.005)
    second, two = drivers.start(toy_plan(name="t", evaluate={"ask": {"task": "toy", "rows": 7, "seed": 9}}), store)
    assert not two.result(60).failed and one.done() and not one.result().failed
    assert "has this machine's GPUs; waiting for it to end" in capsys.readouterr().err
    assert not set(first.made) & set(second.made)


@pytest.mark.parametrize(
    ("chosen", "address", "found"),
    [(None, None, ["0", "1"]), ("1", None, ["1"]), ("", None, []), ("0, 1", "10.0.0.1:6379", [])],
)
def test_gpus_are_taken_by_a_ray_of_the_runs_own(
    monkeypatch: pytest.MonkeyPatch, chosen: str | None, address: str | None, found: list[str]
) -> None:
    monkeypatch.setattr(sharing, "hardware", lambda: {"gpus": ["H100", "H100"]})
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if chosen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    assert sharing.gpus(Runtime(address=address)) == found


def test_damage_is_made_again_by_one_of_two(drivers: Drivers, tmp_path: Path) -> None:
    store, planned = Store(tmp_path), toy_plan()
    drivers.start(planned, store)[1].result(60)
    victim = next(one for one in planned.artefacts if one.kind == "finetune")
    Path(store.path(victim.id, "part-0.parquet")).unlink()
    started = [drivers.start(planned, store) for _ in range(2)]
    for _, future in started:
        assert not future.result(60).failed
    assert sum(driver.made == [victim.id] for driver, _ in started) == 1
