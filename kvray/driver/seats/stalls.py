"""Finds seats that hang and ends them: writes down what each of their processes did, and kills it, on its own node."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import psutil

from kvray.console import say
from kvray.driver.seats.state import SeatState, Stall
from kvray.errors import StoreError, first_line
from kvray.planning.process import SIGNAL, STACKS, Process
from kvray.store.store import Store

LOOK_S = 5.0
"""Seconds that at most pass, as far as silence is concerned, between two looks."""
FOLDER = ".work/stalls"
"""Where a store keeps what was written down."""
ANSWER_S = 120.0
"""For which a node may take to end its processes; a Ray of a busy machine starts a task within some seconds."""
WRITTEN_S = 3.0
"""For which a process may take to write its stack traces."""


class Looks:
    """Tells how much time counts as silence between two looks, the first of which is now.

    At most :data:`LOOK_S` seconds: a pause of this process itself, or of its machine, is nobody's silence.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._looked = clock, clock()

    def passed(self) -> float:
        """Return the seconds since the last look that count."""
        now = self._clock()
        passed, self._looked = min(now - self._looked, LOOK_S), now
        return passed


def found(name: str, seat: SeatState, passed: float, stall_s: float, start_s: float) -> Stall | None:
    """Take further seconds without a sign of a seat; return why it is to be ended if that is too long.

    A seat that is not ended then is found again after as long a silence. The limits are of one that is up, and of its
    start.
    """
    if seat.silent_s is None:
        return None
    seat.silent_s += passed
    limit, knob, doing = (
        (stall_s, "stall_minutes", "no progress") if seat.up else (start_s, "start_minutes", "it was not up")
    )
    if seat.silent_s < limit:
        return None
    seat.hung = f"{doing} for {limit / 60:g} minutes (runtime.{knob})"
    seat.silent_s = 0.0
    return Stall(name, seat.hung, dict(seat.processes))


def end(stall: Stall, store: Store) -> None:
    """End a seat, or the generator, that hangs, and say so; Ray tells of its death. Ray must be initialised."""
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    by_node: dict[str, dict[str, Process]] = {}
    for role, process in stall.processes.items():
        by_node.setdefault(process.node, {})[role] = process
    asked = {}
    for node, processes in by_node.items():
        there = NodeAffinitySchedulingStrategy(node, soft=False)
        asked[node] = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(post_mortem).remote(processes)
    found = [f"{stall.seat}: {stall.why}"]
    for node, answer in asked.items():
        try:
            found += [f"node {node}:", *ray.get(answer, timeout=ANSWER_S)]
        except RayError as error:
            found.append(f"node {node} does not answer: {first_line(error)}")
    name = f"{stall.seat}-{datetime.now(UTC):%Y%m%dT%H%M%S}.txt"
    try:
        store.folder(FOLDER).put(name, "\n".join([*found, ""]).encode())
        where = f"stack traces in {store.path(FOLDER, name)}"
    except StoreError as error:
        where = f"its stack traces could not be stored: {error}"
    say(f"kvray: {stall.seat}: {stall.why}; it is ended, and its work goes to another; {where}")


def post_mortem(processes: Mapping[str, Process]) -> list[str]:
    """Kill processes of this node and their children; return what they were doing, as lines."""
    lines: list[str] = []
    killed: list[psutil.Process] = []
    for role, given in processes.items():
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(given.pid)
            if process.create_time() == given.created:
                for each in (process, *process.children(recursive=True)):
                    if each not in killed:
                        lines += _describe(role if each == process else f"child of {role}", each)
                        killed.append(each)
                continue
        lines.append(f"{role}: process {given.pid} has ended")
    for process in killed:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    return lines


def _describe(role: str, process: psutil.Process) -> Sequence[str]:
    try:
        status, times = process.status(), process.cpu_times()
        memory, name = process.memory_info().rss / 2**30, process.name()
    except psutil.Error as error:
        return [f"{role}: process {process.pid}: {error}"]
    facts = [f"{times.user + times.system:.0f} s of CPU time", f"{memory:.1f} GiB of memory"]
    with suppress(OSError):
        waits = Path(f"/proc/{process.pid}/wchan").read_text()
        facts += [f"waits in the kernel's {waits}"] if waits.strip("0") else []
    line = f"{role}: process {process.pid} ({name}) is {status}, {', '.join(facts)}"
    if status == psutil.STATUS_STOPPED:
        return [f"{line}; a stopped process (SIGSTOP) writes no stack traces"]
    return [line, *_stacks(process.pid)]


def _stacks(pid: int) -> list[str]:
    """Return the stack traces of a process that has exposed them, as lines; nothing where there are none."""
    with suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):  # files come and go
                if os.readlink(entry).startswith(f"/memfd:{STACKS}"):
                    return _written(pid, entry)
    return []


def _written(pid: int, file: Path) -> list[str]:
    """Ask a process for its stack traces, and return them when no more come."""
    os.kill(pid, SIGNAL)
    size, deadline = 0, time.monotonic() + WRITTEN_S
    while time.monotonic() < deadline:
        time.sleep(0.2)
        if size and file.stat().st_size == size:
            break
        size = file.stat().st_size
    return file.read_text(errors="replace").splitlines()
