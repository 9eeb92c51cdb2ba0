"""Deaths on a Ray of several nodes: of the driver, of its actors, of seats and workers, and of whole nodes.

The nodes are processes of one machine (``ray.cluster_utils.Cluster``). A run is a process of its own; whatever dies,
the same command is typed again until it ends well.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.deaths import standin
from benchmarks.deaths.counts import Counts, Rows, compare, rows, unreadable
from kvray.console import say
from kvray.store import failures
from kvray.store.store import Store
from tests import fake_cluster

ROOT = Path(__file__).parents[2]
NODE = {"CPU": 2}
NODES = 3
WORKERS = {
    "seat": ("ray::ImplicitFunc",),
    "hung seat": ("ray::ImplicitFunc",),
    "train worker": ("ray::RayTrainWorker",),
    "train controller": ("ray::TrainController",),
    "dispatcher": ("ray::Dispatcher",),
    "generator": ("ray::Generator",),
    "hung generator": ("ray::Generator",),
}
"""What may be killed beside the driver and a node, by how its process calls itself."""
BETWEEN_S = (0.5, 8.0)
"""Seconds between two deaths."""
PACE = (0.5, standin.STEPS)
"""Seconds that a step of a stand-in finetune takes, so that there is something to kill, and its steps."""
RUN_S = 1200.0


@dataclass
class Story:
    """A sweep that was made in spite of deaths.

    Attributes:
        deaths: what was killed, in order.
        runs: how often the command was typed.
        seconds: from the first to the end of the last.
        counts: what is wrong afterwards.
        error: why it did not end.
    """

    deaths: list[str] = field(default_factory=list)
    runs: int = 0
    seconds: float = 0.0
    counts: Counts = field(default_factory=Counts)
    error: str = ""


class Machines:
    """A running Ray, and who may die on it."""

    def __init__(self, cluster: Any, nodes: list[Any], rng: random.Random) -> None:
        self.cluster, self.nodes, self.rng = cluster, nodes, rng

    def kill(self, driver: subprocess.Popen[bytes], kinds: Sequence[str]) -> str | None:
        """Kill something of a random kind; return of which, None if there is none of it now."""
        kind = self.rng.choice(kinds)
        if kind == "driver":
            driver.kill()
            driver.wait()
        elif kind == "node":
            node = self.nodes.pop(self.rng.randrange(len(self.nodes)))
            self.cluster.remove_node(node, allow_graceful=False)
            self.nodes.append(fake_cluster.add(self.cluster, NODE))
        else:
            found = [each for each in self.workers() if each[1].startswith(WORKERS[kind])]
            if not found:
                return None
            with contextlib.suppress(psutil.NoSuchProcess):
                # A process that is stopped hangs, as one of a broken device or network does.
                self.rng.choice(found)[0].send_signal(signal.SIGSTOP if kind.startswith("hung") else signal.SIGKILL)
        return kind

    def workers(self) -> list[tuple[psutil.Process, str]]:
        """Return the processes that Ray's nodes have started, with what they call themselves."""
        found = []
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                found.append((process, " ".join(process.cmdline())))
        return found


@contextlib.contextmanager
def machines(rng: random.Random) -> Iterator[Machines]:
    """Run a Ray of :data:`NODES` nodes beside a head without CPUs."""
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    with fake_cluster.nodes(*[NODE] * NODES) as (cluster, nodes):
        yield Machines(cluster, nodes, rng)


def command(store: str, sweep: Path | None, pace: tuple[float, int]) -> list[str]:
    """Return what makes the stand-in sweep, or the real one of a file."""
    if sweep is None:
        return [sys.executable, "-m", "benchmarks.deaths.on_ray", store, *map(str, pace)]
    return [sys.executable, "-m", "kvray.cli", "run", str(sweep), "--store", store, "--no-report"]


def undisturbed(
    machines_: Machines, folder: Path, ids: Sequence[str], sweep: Path | None, pace: tuple[float, int] = PACE
) -> tuple[Rows, float]:
    """Return every row of a run in which nothing dies, and the seconds that it took."""
    store, steady = folder / f"undisturbed-{time.monotonic_ns()}", sweep is None
    story = _live(machines_, folder, str(store), sweep, 0, (), BETWEEN_S, pace)
    found = rows(Store(store), list(ids), steady)
    if story.error or len(found) != len(ids) or story.runs != 1:
        raise SystemExit(f"the undisturbed run failed: {story.error or _tail(folder)}")
    return found, story.seconds


def story(
    machines_: Machines,
    folder: Path,
    expected: Rows,
    sweep: Path | None,
    deaths: int,
    kinds: Sequence[str],
    between_s: tuple[float, float] = BETWEEN_S,
    pace: tuple[float, int] = PACE,
) -> Story:
    """Make a sweep while so many deaths come, or as many as come until it is made; count what is wrong then."""
    place = folder / f"store-{time.monotonic_ns()}"
    told = _live(machines_, folder, str(place), sweep, deaths, kinds, between_s, pace)
    told.counts += compare(expected, Store(place), steady=sweep is None)
    shutil.rmtree(place, ignore_errors=True)
    return told


def _live(
    machines_: Machines,
    folder: Path,
    store: str,
    sweep: Path | None,
    deaths: int,
    kinds: Sequence[str],
    between_s: tuple[float, float],
    pace: tuple[float, int],
) -> Story:
    told, began = Story(), time.monotonic()
    environment = {**os.environ, "RAY_ADDRESS": machines_.cluster.address, "RAY_AUTH_MODE": "disabled"}
    place = Store(store)
    while True:
        told.runs += 1
        driver = _start(command(store, sweep, pace), environment, folder)
        due = time.monotonic() + machines_.rng.uniform(*between_s)
        while driver.poll() is None:
            time.sleep(0.1)
            if time.monotonic() - began > RUN_S:
                driver.kill()
                told.error = f"not made after {RUN_S:.0f} s: {_tail(folder)}"
                return told
            if time.monotonic() < due or len(told.deaths) >= deaths:
                continue
            due = time.monotonic() + machines_.rng.uniform(*between_s)
            if (kind := machines_.kill(driver, kinds)) is not None:
                told.deaths.append(kind)
                say(f"chaos: death {len(told.deaths)} of {deaths}: {kind}")
                told.counts += unreadable(place, [each.id for each in place.manifests()])
        noted = failures.noted(place)
        told.counts += Counts(failed=len(noted))
        if noted:
            say(f"chaos: given up: {failures.reasons(place, sorted(noted))}")
        if driver.returncode == 0 or (driver.returncode > 0 and not noted):
            told.error = "" if driver.returncode == 0 else f"exit status {driver.returncode}: {_tail(folder)}"
            told.seconds = time.monotonic() - began
            return told


def _start(words: Sequence[str], environment: Mapping[str, str], folder: Path) -> subprocess.Popen[bytes]:
    with (folder / "run.log").open("ab") as stream:
        return subprocess.Popen(words, cwd=ROOT, env=environment, stdout=stream, stderr=stream)


def _tail(folder: Path) -> str:
    return (folder / "run.log").read_text(errors="replace")[-1500:]
