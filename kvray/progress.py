"""Progress of long work: a bar on a terminal, plain greppable lines everywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

PLAIN_INTERVAL_S = 5.0
"""Seconds between two plain lines of one piece of work (the first and the last are always printed)."""


class Advance(Protocol):
    """Told how much of the work is done, in the unit of ``total``, with an optional note (a loss, a rate)."""

    def __call__(self, done: float, note: str = "") -> None:
        """Show that ``done`` of the total is behind us."""


def say(message: str) -> None:
    """Print one line of progress to standard error, where it never mixes with results."""
    print(message, file=sys.stderr, flush=True)


@contextmanager
def track(label: str, total: float, unit: str = "rows") -> Iterator[Advance]:
    """Yield a callable ``advance(done, note="")`` that shows how far ``label`` is.

    ``done`` is the absolute amount so far, not an increment: a retried step may report the same amount twice.
    """
    started = time.monotonic()
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f} {task.fields[unit]} {task.fields[note]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(label, total=total, unit=unit, note="")
            yield lambda done, note="": bar.update(task, completed=done, note=note)
        return
    last = started - PLAIN_INTERVAL_S

    def advance(done: float, note: str = "") -> None:
        nonlocal last
        now = time.monotonic()
        if done < total and now - last < PLAIN_INTERVAL_S:
            return
        last = now
        say(f"kvray: {label}: {done:.0f}/{total:.0f} {unit} {now - started:.0f}s {note}".rstrip())

    yield advance
