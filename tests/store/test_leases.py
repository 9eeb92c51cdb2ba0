"""Leases: one holder per artefact whatever happens, on a disk and in a bucket; the dead are found without clocks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from s3_server import BUCKET, REQUESTS, endpoint, store

from kvray.errors import StoreError
from kvray.store import leases
from kvray.store.leases import FOLDER, Leases, Watch
from kvray.store.store import Store

__all__ = ["endpoint", "store"]
CELLS = [f"predictions/cell-{number:03}" for number in range(30)]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "LOOK_S", 0.05)


def eventually(check: Callable[[], bool], seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while not check() and time.monotonic() < end:
        time.sleep(0.02)
    return check()


def test_what_one_holds_another_waits_for_until_it_is_given_back(store: Store) -> None:
    with Leases(store, "one", beat_s=1.0) as one:
        assert one.alone
        assert one.take(CELLS[:3]) == set(CELLS[:3]) == one.take(CELLS[:3])
        with Leases(store, "two", beat_s=1.0) as two:
            assert not two.alone and eventually(lambda: not one.alone)
            assert two.take(CELLS[:4]) == {CELLS[3]}
            assert {holder.run for holder in two.held_elsewhere().values()} == {one.me.run}
            one.give_back(CELLS[0])
            assert eventually(lambda: CELLS[0] not in two.held_elsewhere())
            assert two.take(CELLS[:4]) == {CELLS[0], CELLS[3]}
            assert one.take(CELLS[:1]) == set() and not one.lost()
        assert eventually(lambda: one.held_elsewhere() == {})
        assert one.take(CELLS) == set(CELLS)
    ledger, dead, _ = Watch(store).look()
    assert ledger.runs == {} == ledger.held and not dead
    assert all(name.endswith(".json") for name in store.folder(FOLDER).names()), "beats go with their runs"


def test_of_many_that_try_at_once_each_cell_has_one_holder(store: Store) -> None:
    start = threading.Barrier(4)

    def run(name: str) -> list[str]:
        got: list[str] = []
        with Leases(store, name, beat_s=2.0) as mine:
            start.wait()
            for first in range(0, len(CELLS), 6):
                taken = mine.take(CELLS[first : first + 9])  # overlapping with the next
                got += taken - set(got)
            start.wait()
        return got

    with ThreadPoolExecutor(4) as pool:
        held = [one for each in pool.map(run, ["a", "b", "c", "d"]) for one in each]
    assert sorted(held) == CELLS


def dying(store: Store, sweep: str, cells: list[str]) -> Leases:
    """Return the leases of a run that beats no more, on another machine."""
    gone = Leases(store, sweep, beat_s=0.1)
    gone.me = leases.replace(gone.me, process=None, host="far-away")
    gone._put_beat()
    gone._joined = True
    assert gone.take(cells) == set(cells)
    return gone


def test_a_run_without_beats_is_dead_by_the_readers_clock_and_one_takes_over(store: Store) -> None:
    gone = dying(store, "gone", CELLS[:5])
    with Leases(store, "a", beat_s=0.5) as one, Leases(store, "b", beat_s=0.5) as two:
        assert not one.alone
        assert eventually(lambda: gone.me.run not in one._ledger.runs and gone.me.run not in two._ledger.runs)
        with ThreadPoolExecutor(2) as pool:
            first, second = pool.map(lambda each: each.take(CELLS[:5]), [one, two])
        assert first | second == set(CELLS[:5]) and not first & second
        # It was only suspended: it joins again, and knows what it lost.
        gone.give_back(CELLS[0])
        gone._see()
        assert gone.lost() == set(CELLS[1:5]) and gone.lost() == set()
        assert gone.take([CELLS[0], CELLS[7]]) == {CELLS[7]}


def test_a_suspended_run_keeps_what_nobody_took(store: Store) -> None:
    gone = dying(store, "gone", CELLS[:5])
    with Leases(store, "a", beat_s=0.5) as one:
        assert eventually(lambda: gone.me.run not in one._ledger.runs)
        assert one.take(CELLS[:2]) == set(CELLS[:2])
        gone._see()
        assert gone.lost() == set(CELLS[:2]) and gone.take(CELLS[:5]) == set(CELLS[2:5])
        assert eventually(lambda: set(one.held_elsewhere()) == set(CELLS[2:5]))


def test_clocks_play_no_part(tmp_path: Path) -> None:
    store, now = Store(tmp_path), [0.0]
    other = dying(store, "other", CELLS[:1])
    watch = Watch(store, clock=lambda: now[0])
    beat = next(path for path in (tmp_path / FOLDER).iterdir() if path.name.startswith("beat-"))
    for at, stamp in enumerate((10**9, 0, 5 * 10**18)):  # times of writing that jump: all are signs of life
        os.utime(beat, ns=(stamp, stamp))
        now[0] += 1000.0
        assert watch.look()[1] == [], at
    for _ in range(4):
        now[0] += 0.09
        assert watch.look()[1] == []
    now[0] += 0.09
    assert watch.look()[1] == [other.me]


def test_a_time_without_a_look_is_nobodys_silence(tmp_path: Path) -> None:
    store, now = Store(tmp_path), [0.0]
    other = dying(store, "other", CELLS[:1])
    other.me = leases.replace(other.me, beat_s=15.0)
    other._change(set())
    watch = Watch(store, clock=lambda: now[0])
    for seconds in (0.0, 600.0, 15.0, 15.0, 15.0):  # the store was out of reach for both
        now[0] += seconds
        assert watch.look()[1] == [], now
    now[0] += 15.0
    assert watch.look()[1] == [other.me]


def test_who_slept_over_many_versions_does_not_believe_in_its_own(store: Store) -> None:
    sleeper = dying(store, "sleeper", [])
    with Leases(store, "a", beat_s=5.0) as one:
        for cell in CELLS[:8]:
            one.take([cell])
        assert store.folder(FOLDER).read(leases._version(sleeper._ledger.number + 1)) is None, "deleted by now"
        assert sleeper.take([CELLS[0], CELLS[9]]) == {CELLS[9]}
        assert one.take(CELLS[:10]) == set(CELLS[:9])


def test_a_lost_answer_is_no_lost_lease(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with Leases(store, "a", beat_s=5.0) as one:
        put_new = one._folder.files.put_new
        monkeypatch.setattr(one._folder.files, "put_new", lambda *given: put_new(*given) and False)
        assert one.take(CELLS[:2]) == set(CELLS[:2]) and one.alone


def test_who_joined_first_has_the_devices(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with (
        Leases(store, "a", ["0", "1"]) as one,
        Leases(store, "b", ["2"]) as two,
        Leases(store, "c", ["1", "2"]) as three,
    ):
        assert one.elder() is two.elder() is None and three.elder() == one.me
        one.take(CELLS[:1])
        assert one._look() and two._look() and one.elder() is None, "a change keeps the order"
        with Leases(store, "d") as four:
            assert four.elder() is None
    assert three.elder() is not None and (three._look(), three.elder())[1] is None


def test_a_ledger_that_is_none_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for data in (b"{", b'{"format": 2, "runs": []}', b'{"format": 1, "runs": [{"run": "a", "holds": []}]}'):
        store.folder(FOLDER).put(leases._version(1), data)
        with pytest.raises(StoreError, match=r"0000000001\.json is no ledger of leases"):
            Leases(store, "a")


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield child
    child.kill()
    child.wait()


def test_a_process_of_this_machine_that_is_gone_is_dead_at_once(
    tmp_path: Path, process: subprocess.Popen[bytes]
) -> None:
    store = Store(tmp_path)
    other = Leases(store, "other", beat_s=3600.0)
    other.me = leases.replace(other.me, process=leases._process(process.pid), pid=process.pid)
    other._put_beat()
    other._joined = True
    other.take(CELLS[:1])
    watch = Watch(store)
    assert watch.look()[1] == []
    process.send_signal(signal.SIGSTOP)
    assert watch.look()[1] == []
    process.kill()
    assert eventually(lambda: watch.look()[1] == [other.me]), "a killed child that nobody waited for is gone, too"
    with Leases(store, "a") as one:
        assert one.take(CELLS[:1]) == set(CELLS[:1]) and not one.alone


def test_leases_cost_by_the_batch_and_not_by_the_cell(endpoint: str, tmp_path: Path) -> None:
    store = Store(f"s3://{BUCKET}/{tmp_path.name}?endpoint_override=http://{endpoint}&scheme=http")
    store.check()
    with Leases(store, "a", beat_s=60.0) as one:
        cells = [f"predictions/c-{number:05}" for number in range(10_000)]
        for first in range(0, 10_000, 2_000):
            REQUESTS.clear()
            assert len(one.take(cells[first : first + 2_000])) == 2_000
            assert len(REQUESTS) <= 5, REQUESTS
            for cell in cells[first : first + 1_000]:
                one.give_back(cell)
