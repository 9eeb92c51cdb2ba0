"""What ``kvray status --watch`` shows: a sweep's progress, looked at again and again until it is over."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime

from kvray.console import duration, table
from kvray.planning.artefacts import KINDS, PlannedArtefact
from kvray.store import failures
from kvray.store.leases import Holder, Watch
from kvray.store.store import Store

EVERY_S = 5.0
"""Default seconds between two looks: each is a listing of the artefacts' folders and one of the leases."""
STATES = ("committed", "running", "waiting", "failed", "blocked")
"""Running: a live run holds it. Blocked: it needs something that failed. Waiting: any other that is to be made."""
_NAMES = {"writing": "writings", "dataset": "datasets", "finetune": "finetunes", "predictions": "predictions"}
_LISTED = 6  # most artefacts of a state, or runs, that are named
_WHY = 120  # characters of an error


def watch(store: Store, sweep: str, planned: Sequence[PlannedArtefact], every_s: float = EVERY_S) -> int:
    """Show a sweep's progress until nothing of it is left to make, or Ctrl-C; return the exit status.

    A terminal is drawn again at each look; elsewhere a block is printed whenever something has changed. It is over once
    everything is committed, or has failed while no run of the sweep is alive: 1 if something failed, else 0.
    """
    looks = _Looks(store, sweep, planned)
    try:
        with _display() as show:
            while True:
                seen = looks.look()
                show(seen)
                if seen.over:
                    break
                time.sleep(every_s)
    except KeyboardInterrupt:
        return 0
    return 1 if seen.count("failed") else 0


@dataclass(frozen=True)
class Seen:
    """A sweep at one look; ``states`` are :data:`STATES` by artefact, ``runs`` the live ones of the whole store."""

    sweep: str
    store: str
    planned: Sequence[PlannedArtefact]
    states: dict[str, str]
    reasons: dict[str, str]
    runs: list[Holder]
    latest: tuple[int, str] | None  # the last commit: ns since the epoch, id
    at: float = field(default_factory=time.time, compare=False)  # seconds since the epoch

    def count(self, state: str, kind: str | None = None) -> int:
        """Return how many artefacts, of one kind or of all, are in a state."""
        return sum(self.states[each.id] == state for each in self.planned if kind in (None, each.kind))

    @property
    def own_runs(self) -> list[Holder]:
        """Live runs of this very sweep."""
        return [run for run in self.runs if run.sweep == self.sweep]

    @property
    def over(self) -> bool:
        """Whether there is nothing to wait for."""
        if self.count("committed") == len(self.planned):
            return True
        return not self.own_runs and not self.count("running") and not self.count("waiting")

    def lines(self) -> list[str]:
        """Return what is shown: counts by kind, who is at work, what is being made, what failed."""
        kinds = [kind for kind in KINDS if any(each.kind == kind for each in self.planned)]
        shown = [state for state in STATES if state != "blocked" or self.count(state)]
        rows = [[_NAMES[kind], *(self.count(state, kind) for state in shown), self._share(kind)] for kind in kinds]
        clock = datetime.fromtimestamp(self.at).strftime("%H:%M:%S")
        done, of = self.count("committed"), len(self.planned)
        found = [f"{self.sweep}: {done} of {of} artefacts committed, {clock}, {self.store}"]
        found += table(["", *shown, "done"], rows).splitlines()
        found += [f"{run}, since {run.began}" for run in self.own_runs[:_LISTED]]
        if not self.own_runs and not self.over:
            found.append("no run of it is alive; kvray run with its file makes the rest")
        if self.latest is not None:
            ago = max(0.0, self.at - self.latest[0] / 1e9)
            found.append(f"last committed: {self.latest[1]}, {duration(ago)} ago")
        found += self._listed("running", lambda one: "")
        return found + self._listed("failed", lambda one: f": {' '.join(self.reasons.get(one, '').split())[:_WHY]}")

    def _share(self, kind: str) -> str:
        of = sum(each.kind == kind for each in self.planned)
        return f"{100 * self.count('committed', kind) // of} %"

    def _listed(self, state: str, more: Callable[[str], str]) -> list[str]:
        ids = [each.id for each in self.planned if self.states[each.id] == state]
        rest = [f"{state}: and {len(ids) - _LISTED} more"] if len(ids) > _LISTED else []
        return [f"{state}: {one}{more(one)}" for one in ids[:_LISTED]] + rest


class _Looks:
    """Looks at the store; remembers the errors that it has read."""

    def __init__(self, store: Store, sweep: str, planned: Sequence[PlannedArtefact]) -> None:
        self._store, self._sweep, self._planned = store, sweep, planned
        self._ledger = Watch(store)
        self._reasons: dict[str, str] = {}

    def look(self) -> Seen:
        # The ledger first: what a run gave back since then is committed, or failed, in the listing.
        ledger, dead, _ = self._ledger.look()
        live = [run for run in ledger.runs.values() if run not in dead]
        held = {one for one, run in ledger.held.items() if run in {each.run for each in live}}
        listing = self._store.listing([each.id for each in self._planned])
        committed = {one: found.committed_ns for one, found in listing.items() if found.state == "committed"}
        noted = {one for one in failures.noted(self._store) if one in listing and one not in committed}
        # What is held is tried again, and may fail for another reason.
        self._reasons = {one: why for one, why in self._reasons.items() if one in noted - held}
        self._reasons |= failures.reasons(self._store, noted - self._reasons.keys())
        states: dict[str, str] = {}
        for each in self._planned:  # what an artefact needs comes before it
            stuck = any(states.get(need) in ("failed", "blocked") for need in each.needs)
            open_state = "running" if each.id in held else "failed" if each.id in noted else "waiting"
            state = "blocked" if open_state == "waiting" and stuck else open_state
            states[each.id] = "committed" if each.id in committed else state
        latest = max(((ns, one) for one, ns in committed.items() if ns is not None), default=None)
        reasons = {one: self._reasons.get(one, "") for one in noted if states[one] == "failed"}
        return Seen(self._sweep, self._store.uri, self._planned, states, reasons, live, latest)


@contextmanager
def _display() -> Iterator[Callable[[Seen], None]]:
    """Yield what shows a look: in a terminal in place of the last one, elsewhere below it if anything differs."""
    if sys.stdout.isatty() and os.environ.get("TERM", "") not in ("", "dumb", "unknown"):
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        with Live(Text(""), console=Console(), auto_refresh=False) as live:
            yield lambda seen: live.update(
                Text("\n".join(seen.lines()), no_wrap=True, overflow="ellipsis"), refresh=True
            )
        return
    last: list[Seen] = []

    def tell(seen: Seen) -> None:
        if last and last[-1] == seen:
            return
        print("\n".join([*([""] if last else []), *seen.lines()]), flush=True)
        last[:] = [seen]

    yield tell
