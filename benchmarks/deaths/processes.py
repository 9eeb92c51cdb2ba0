"""Deaths of one process: at every step of the store's writing, at any instant, by a full disk, by a stepped clock.

A sweep runs in a forked child of a process that has imported everything, so that a death costs less than a second.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from kvray.driver.run import Result
from kvray.store.places import local
from kvray.store.places.object_store import ObjectFiles

DISK_STEPS = ("open", "write", "fsync", "replace", "link", "unlink", "mkdir", "rmdir")
"""Calls of :mod:`os` by which the store changes a disk."""
BUCKET_STEPS = ("put", "put_new", "delete", "delete_tree")
"""Calls by which it changes a bucket."""
MOMENTS = ("before", "middle", "after")


@dataclass
class Ended:
    """How a child ended: by which signal (0: none), what its run made and gave up, its steps, and what it imported."""

    signal: int
    made: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    error: str = ""
    steps: list[str] = field(default_factory=list)
    modules: list[str] = field(default_factory=list)


def warm_up(modules: list[str]) -> None:
    """Import what a child has imported, which takes most of its time; children that are forked later have it."""
    for name in modules:
        with contextlib.suppress(Exception):
            importlib.import_module(name)


def child(run: Callable[[], Result], log: Path, before: Callable[[], contextlib.AbstractContextManager[Any]]) -> int:
    """Fork a process that calls ``run`` within ``before()``, and return its id; see :func:`ended`."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        with log.open("w") as stream:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
        os.setpgid(0, 0)
        steps: Any = None
        try:
            with before() as steps:
                result = run()
            told = {"made": result.made, "failed": result.failed}
        except Exception as error:
            traceback.print_exc()
            told = {"error": f"{type(error).__name__}: {error}"}
        told |= {"steps": getattr(steps, "names", []), "modules": sorted(sys.modules)}
        log.with_suffix(".json").write_text(json.dumps(told))
        status = 0
    finally:
        sys.stdout.flush()
        os._exit(status)


def ended(pid: int, log: Path, within_s: float = 300.0) -> Ended:
    """Wait for a child; TimeoutError, after its death, if it takes longer."""
    deadline = time.monotonic() + within_s
    while (found := os.waitpid(pid, os.WNOHANG))[0] == 0:
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise TimeoutError(f"a run hung for {within_s:.0f} s:\n{log.read_text()[-2000:]}")
        time.sleep(0.005)
    number = os.WTERMSIG(found[1]) if os.WIFSIGNALED(found[1]) else 0
    told = log.with_suffix(".json")
    if number or not told.exists():
        return Ended(number, error="" if number else log.read_text()[-2000:])
    return Ended(0, **json.loads(told.read_text()))


@dataclass
class Steps:
    """Notes the steps that change a store, and kills this process at one of them."""

    at: int = -1
    moment: str = "before"
    names: list[str] = field(default_factory=list)

    def take(self, genuine: Callable[..., Any], name: str, *args: Any, **options: Any) -> Any:
        """Make a step, or die before, after or (of a write to a disk) in the middle of it."""
        number = len(self.names)
        self.names.append(name)
        if number != self.at:
            return genuine(*args, **options)
        if self.moment == "middle" and name == "write":
            genuine(args[0], args[1][: len(args[1]) // 2])
        elif self.moment == "after":
            genuine(*args, **options)
        os.kill(os.getpid(), signal.SIGKILL)


class _Os:
    """The os module, with its changes counted."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps

    def __getattr__(self, name: str) -> Any:
        genuine = getattr(os, name)
        if name not in DISK_STEPS:
            return genuine
        return lambda *args, **options: self._steps.take(genuine, name, *args, **options)


@contextlib.contextmanager
def counted(steps: Steps) -> Iterator[Steps]:
    """Note, in this process, every step that changes a store on a disk or in a bucket."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(local, "os", _Os(steps)))
        for name in BUCKET_STEPS:
            genuine = getattr(ObjectFiles, name)

            def step(self: Any, *args: Any, _genuine: Any = genuine, _name: str = name) -> Any:
                return steps.take(_genuine, _name, self, *args)

            stack.enter_context(mock.patch.object(ObjectFiles, name, step))
        yield steps


@contextlib.contextmanager
def stepped_clock(by_s: float, after_s: float) -> Iterator[None]:
    """Step this process's wall clock by some seconds, after some; the monotonic clock goes on."""
    genuine, began = time.time, time.monotonic()

    def now() -> float:
        return genuine() + (by_s if time.monotonic() - began >= after_s else 0.0)

    with mock.patch.object(time, "time", now), mock.patch.object(time, "time_ns", lambda: int(now() * 1e9)):
        yield


def boundaries(steps: Sequence[str]) -> list[tuple[int, str]]:
    """Return every instant at which a run of these steps can be killed: its number and the moment."""
    moments = itertools.product(range(len(steps)), MOMENTS)
    return [(at, moment) for at, moment in moments if moment != "middle" or steps[at] == "write"]
