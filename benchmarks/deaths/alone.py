"""Cases of one process or two: a stand-in sweep is disturbed, made again by the same call, and counted."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.deaths import s3, standin
from benchmarks.deaths.counts import Counts, Rows, compare, rows, unreadable
from benchmarks.deaths.processes import Ended, Steps, boundaries, child, counted, ended, stepped_clock, warm_up
from kvray.models.reference import BaseModelRef
from kvray.planning.artefacts import Plan
from kvray.store.patience import VARIABLE
from kvray.store.store import Store

DAY_S = 86400.0


@dataclass
class Sweep:
    """The stand-in sweep, and what an undisturbed run of it leaves.

    Attributes:
        plan: what is to be made of ``base``.
        expected: every row.
        steps: by which an undisturbed run changes the store, by kind of store.
        seconds: that it takes.
    """

    plan: Plan
    base: BaseModelRef
    expected: Rows
    steps: dict[str, list[str]]
    seconds: dict[str, float]


@dataclass
class Case:
    """One way to die, and what came of it."""

    kind: str
    place: str
    what: str
    deaths: int
    counts: Counts
    error: str = ""


class Alone:
    """Runs cases on stores below ``folder``, and in a bucket if there is one."""

    def __init__(self, folder: Path, bucket: s3.Server | None, rng: random.Random) -> None:
        self._folder = folder
        self._bucket = bucket
        self._rng = rng
        self._numbers = itertools.count()
        self.sweep = self._reference()

    def boundary(self, place: str, at: int, moment: str) -> Case:
        """Die at a step that changes the store."""
        steps = Steps(at, moment)
        return self._killed("boundary", place, f"{moment} step {at}", lambda: counted(steps))

    def boundaries(self, place: str) -> list[tuple[int, str]]:
        """Return every instant of :meth:`boundary`."""
        return boundaries(self.sweep.steps[place])

    def instant(self, place: str) -> Case:
        """Die at any instant, several times in a row."""
        store = self._store(place)
        deaths = self._rng.randint(1, 3)
        counts, killed = Counts(), 0
        for _ in range(deaths):
            log = self._log()
            pid = self._start(store, log)
            after_s = self._rng.uniform(0, self.sweep.seconds[place])
            deadline = time.monotonic() + after_s
            while time.monotonic() < deadline and not log.with_suffix(".json").exists():
                time.sleep(0.005)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            killed += ended(pid, log).signal != 0
            counts += unreadable(store, self._ids)
        return self._again("any instant", place, f"{killed} deaths", store, counts, max(1, killed))

    def clock(self, place: str) -> Case:
        """Step the wall clock by up to a day, forwards or backwards, and die later; the next run has the true time."""
        by_s, after_s = self._rng.uniform(-DAY_S, DAY_S), self._rng.uniform(0, self.sweep.seconds[place])
        steps = Steps(self._rng.randrange(len(self.sweep.steps[place])), "after")

        @contextlib.contextmanager
        def disturbed() -> Iterator[Steps]:
            with stepped_clock(by_s, after_s), counted(steps):
                yield steps

        return self._killed("stepped clock", place, f"{by_s / 3600:+.1f} h", disturbed)

    def two(self, place: str, dies: bool) -> Case:
        """Start two drivers of one sweep at once; with ``dies`` one of them is killed at some step."""
        store = self._store(place)
        steps = Steps(self._rng.randrange(len(self.sweep.steps[place])) if dies else -1, "after")
        logs = [self._log(), self._log()]
        pids = [self._start(store, logs[0], lambda: counted(steps)), self._start(store, logs[1])]
        told = [ended(pid, log) for pid, log in zip(pids, logs, strict=True)]
        counts = unreadable(store, self._ids)
        alive = [each for each in told if not each.signal]
        made = [one for each in alive for one in each.made]
        counts += Counts(twice=len(made) - len(set(made)), failed=sum(len(each.failed) for each in alive))
        error = "; ".join(each.error for each in alive if each.error)
        kind = "two drivers, one dies" if dies else "two drivers"
        case = self._again(kind, place, f"step {steps.at}", store, counts, int(dies))
        case.error = case.error or error
        return case

    def full(self, waits: bool) -> Case:
        """Fill the disk in the middle; there is room again while the run waits for it, or after it has given up."""
        place = Path(tempfile.mkdtemp(dir=self._folder, prefix="full-"))
        # KiB; the sweep takes 600, and is not even begun where less than half of what it says it takes is free.
        size = self._rng.randrange(260 if waits else 40, 400)
        _mount("-t", "tmpfs", "-o", f"size={size}k", "kvray-chaos", str(place))
        try:
            store, log = Store(place / "store"), self._log()
            patience = {VARIABLE: "300" if waits else "1"}
            pid = self._start(store, log, lambda: mock.patch.dict(os.environ, patience))
            if waits:
                time.sleep(self.sweep.seconds["disk"] + self._rng.uniform(1, 4))
                _mount("-o", "remount,size=64m", str(place))
            first = ended(pid, log)
            _mount("-o", "remount,size=64m", str(place))
            counts = unreadable(store, self._ids) + Counts(failed=len(first.failed) if waits else 0)
            case = self._again("full disk", "disk", f"{size} KiB, waits: {waits}", store, counts, 1)
            if first.signal or (waits and first.error):
                case.error = case.error or first.error or f"the run on a full disk died of signal {first.signal}"
            return case
        finally:
            subprocess.run(["umount", "--lazy", str(place)], check=False)

    def connection(self) -> Case:
        """Make the sweep in a bucket of which a third of all requests fails, and which is out of reach for a while."""
        assert self._bucket
        store, log = self._store("bucket"), self._log()
        name = store.uri.partition("?")[0].rpartition("/")[2]
        pid = self._start(Store(self._bucket.flaky.replace("NAME", name)), log)
        time.sleep(self._rng.uniform(0, self.sweep.seconds["bucket"]))
        self._bucket.cut_off()
        first = ended(pid, log)
        counts = unreadable(store, self._ids) + Counts(failed=len(first.failed))
        case = self._again("connection", "bucket", "a third fails, cut off once", store, counts, 1)
        case.error = case.error or first.error
        return case

    # Within.

    @property
    def _ids(self) -> list[str]:
        return list(self.sweep.expected)

    def _reference(self) -> Sweep:
        from kvray.driver.run import prepare

        plan, base = prepare(standin.sweep())
        ids = [artefact.id for artefact in plan.artefacts]
        self.sweep = Sweep(plan, base, {one: [] for one in ids}, {}, {})
        log = self._log()
        warm_up(ended(self._start(self._store("disk"), log), log).modules)
        for place in ["disk", *(["bucket"] if self._bucket else [])]:
            store, log, steps = self._store(place), self._log(), Steps()
            began = time.monotonic()
            told = ended(self._start(store, log, lambda steps=steps: counted(steps)), log)
            if told.failed or told.error or len(told.made) != len(ids):
                raise SystemExit(f"the undisturbed run failed: {told.error or told.failed}\n{log.read_text()}")
            self.sweep.seconds[place] = time.monotonic() - began
            self.sweep.steps[place] = told.steps
            found = rows(store, ids, steady=True)
            if self.sweep.expected[ids[0]] and found != self.sweep.expected:
                raise SystemExit("two undisturbed runs differ")
            self.sweep.expected = found
        return self.sweep

    def _killed(self, kind: str, place: str, what: str, before: Callable[[], Any]) -> Case:
        store, log = self._store(place), self._log()
        died = ended(self._start(store, log, before), log)
        counts = unreadable(store, self._ids)
        deaths = int(died.signal == signal.SIGKILL)
        return self._again(kind, place, what, store, counts, deaths)

    def _again(self, kind: str, place: str, what: str, store: Store, counts: Counts, deaths: int) -> Case:
        log = self._log()
        last: Ended = ended(self._start(store, log), log)
        error = last.error or (f"died of signal {last.signal}" if last.signal else "")
        counts += Counts(failed=len(last.failed)) + compare(self.sweep.expected, store, steady=True)
        # Away with it: moto's listings of a bucket read every key that there is.
        store.fs.delete_dir(store.root)
        return Case(kind, place, what, deaths, counts, error)

    def _start(self, store: Store, log: Path, before: Callable[[], Any] = contextlib.nullcontext) -> int:
        uri = store.uri
        return child(lambda: standin.run(self.sweep.plan, self.sweep.base, Store(uri)), log, before)

    def _store(self, place: str) -> Store:
        name = f"store-{next(self._numbers):05d}"
        if place == "disk":
            return Store(self._folder / name)
        assert self._bucket
        return Store(self._bucket.steady.replace("NAME", name))

    def _log(self) -> Path:
        return self._folder / f"run-{next(self._numbers):05d}.log"


def _mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True, capture_output=True)


def sample(cases: Sequence[Any], count: int, rng: random.Random) -> list[Any]:
    """Return so many cases: all, repeated as needed, in random order."""
    chosen: list[Any] = []
    while len(chosen) < count:
        chosen += rng.sample(list(cases), min(len(cases), count - len(chosen)))
    return chosen
