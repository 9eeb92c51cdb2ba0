"""Leases: which run makes which artefact, so that each has one writer; any number of runs may share a store.

    .work/leases/0000000041.json    the ledger's newest version: the runs that are alive, and what each holds
    .work/leases/beat-<run>         written again every BEAT_S seconds for as long as the run lives

**Taking.** A change of the ledger is a new version of it: a run reads version n and creates version n + 1, which
exactly one of all that try does (:meth:`~kvray.store.places.files.Files.put_new`: a conditional PUT in a bucket, a
link on a disk). The others read that one and try again. So changes have one order, each made with all before it in
sight, and no artefact is ever held twice. (Delta Lake orders the writers of a table in the same way; Armbrust et al.,
VLDB 2020.) Old versions are deleted, so a run that slept long enough may create a number that was used before; as the
*newest* version alone is true, a run believes in no change that it does not find there afterwards. One version takes
any number of artefacts: leases cost requests by the batch of artefacts that become ready, not by the cell.

**Living.** A run is dead when its beat has not changed for MISSED of its own intervals: the reader counts by its own
clock from when it first saw that beat, so the machines' clocks need not agree. A time in which the reader itself could
not look counts as one interval. If it ran on this machine, and its process is gone, it is dead at once. Who finds it
dead takes it out of the ledger with all that it held; that is a change like any other, so of two that find it one gets
what it held. (NFS clients may list a folder from memory for a minute; a run's own beat, in the same folder, makes its
client ask the server.)

**Losing.** A run that was suspended, or whose store was out of reach, finds itself taken out. It joins again, keeps
what nobody took meanwhile, and leaves the rest to whoever holds it (:meth:`Leases.lost`). What its seats still wrote
in the meantime does no harm: chunks of answers are created, never replaced; shards are the same bytes whoever makes
them; and of two commits the first one stands, since the manifest is created, too. The one gap that is left: a finetune
whose files are still being written when another run, which took it over, commits it. The manifest's sha256 shows that,
and the finetune is made again.

**Devices.** Runs that share a machine without sharing a Ray would start engines on the same GPUs. The ledger names the
GPUs that each takes for itself, in the order of joining, and who comes later takes nothing until they are free.

**Looking.** The store alone says what is committed, and a run lists it once, at its start. While no other run has
changed the ledger since before that listing, nobody else can have committed anything; after that, what a run takes it
looks at first (:attr:`Leases.alone`).
"""

import contextlib
import itertools
import json
import os
import random
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from kvray.console import say
from kvray.errors import StoreError
from kvray.store.manifest import now
from kvray.store.root import Root

FOLDER = ".work/leases"
BEAT_S = 15.0
"""Seconds between two beats of a run."""
MISSED = 4
"""Beats in a row that a dead run has missed."""
LOOK_S = 2.0
"""Seconds between two looks at the ledger while other runs are alive."""
_KEPT = 4  # versions of the ledger, for whoever has just listed them
_END_S = 5.0  # for which the end of a run waits until its last look is over
_PATIENCE_S = 120.0  # for a change: as long as others change the ledger without a pause
BEAT = "beat-"
"""Before a run, the name of its beat."""
_VERSION = re.compile(r"(\d{10})\.json")


@dataclass(frozen=True)
class Holder:
    """A run, as the ledger names it."""

    run: str  # 12 hex digits, its own
    sweep: str
    host: str
    pid: int
    process: str | None  # the process itself, which a pid is not for ever; None where the system does not tell
    began: str  # ISO 8601, UTC, by its own clock: for people to read
    beat_s: float  # seconds between its beats
    devices: tuple[str, ...] = ()  # what of a machine it has for itself, and shares with no run that joined later
    changes: int = 0  # of the ledger that it made

    def __str__(self) -> str:
        return f"run {self.run} of {self.sweep} on {self.host} (process {self.pid})"


@dataclass(frozen=True)
class Ledger:
    """One version of the ledger: the runs by name, and which of them holds each artefact."""

    number: int = 0
    runs: Mapping[str, Holder] = field(default_factory=dict)
    held: Mapping[str, str] = field(default_factory=dict)

    def without(self, runs: Collection[str]) -> "Ledger":
        """Return the ledger without some runs and what they hold."""
        kept = {run: holder for run, holder in self.runs.items() if run not in runs}
        return replace(self, runs=kept, held={one: run for one, run in self.held.items() if run not in runs})

    def to_bytes(self) -> bytes:
        held: dict[str, list[str]] = {run: [] for run in self.runs}
        for one, run in self.held.items():
            held[run].append(one)
        runs = [{**asdict(holder), "holds": held[run]} for run, holder in self.runs.items()]
        return (json.dumps({"format": 1, "runs": runs}, indent=1) + "\n").encode()


def read(number: int, data: bytes, where: str) -> Ledger:
    """Read a version of the ledger; StoreError if it is none."""
    try:
        document = json.loads(data)
        if document["format"] != 1:
            raise ValueError(f"found format {document['format']}, expected 1: use the kvray that wrote it")
        held = {one: str(each["run"]) for each in document["runs"] for one in each.pop("holds")}
        holders = [Holder(**{**each, "devices": tuple(each["devices"])}) for each in document["runs"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(
            f"{where} is no ledger of leases ({error!r}); if no run is alive, remove the folder {FOLDER} of the store"
        ) from error
    return Ledger(number, {holder.run: holder for holder in holders}, held)


class Watch:
    """Reads the ledger, and tells by beats which runs are dead; changes nothing."""

    def __init__(self, store: Root, clock: Callable[[], float] = time.monotonic) -> None:
        self.folder = store.folder(FOLDER)
        self._clock = clock
        self._known: tuple[Ledger, object] | None = None  # the newest version read, and what the listing said of it
        self._beats: dict[str, tuple[object, float]] = {}  # by run: what the listing says of its beat, for how long
        self._looked = clock()

    def look(self) -> tuple[Ledger, list[Holder], list[str]]:
        """Return the ledger, its runs that are dead, and the names of versions that nobody needs.

        It is one listing and, if there is a newer version, one read.
        """
        while True:
            infos = self.folder.infos()
            numbers = sorted(int(match[1]) for match in map(_VERSION.fullmatch, infos) if match)
            old = [_version(number) for number in numbers[:-_KEPT]]
            ledger = self._newest(infos, numbers[-1]) if numbers else Ledger()
            if ledger is not None:
                now = self._clock()
                passed, self._looked = now - self._looked, now
                return ledger, [holder for holder in ledger.runs.values() if self._dead(holder, infos, passed)], old

    def _newest(self, infos: Mapping[str, Any], number: int) -> Ledger | None:
        """Return a version of the ledger; None if it is gone, as there are newer ones by now."""
        name = _version(number)
        seen = _stamp(infos[name])
        if self._known is None or (self._known[0].number, self._known[1]) != (number, seen):
            data = self.folder.read(name)
            if data is None:
                return None
            self._known = read(number, data, f"{self.folder.place}/{name}"), seen
        return self._known[0]

    def _dead(self, holder: Holder, infos: Mapping[str, Any], passed: float) -> bool:
        """Return whether a run has missed its beats, which were listed ``passed`` seconds after the last listing.

        Of a time in which this process could not look (suspended, or the store out of reach for all) one beat counts.
        """
        info = infos.get(BEAT + holder.run)
        stamp = _stamp(info) if info is not None else None
        known, silent = self._beats.get(holder.run, (None, 0.0))
        changed = holder.run not in self._beats or known != stamp
        silent = 0.0 if changed else silent + min(passed, max(holder.beat_s, LOOK_S))
        self._beats[holder.run] = stamp, silent
        return _gone(holder.process) or silent > MISSED * holder.beat_s


class Leases:
    """What one run holds. All methods may be called from any thread; they raise StoreError as the store does."""

    def __init__(
        self,
        store: Root,
        sweep: str,
        devices: Iterable[str] = (),
        beat_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Look at the ledger, which is to be before the store is listed; nothing is written yet.

        ``devices`` are names of what this run would take of its machine without asking anyone; see :meth:`elder`.
        """
        self.me = Holder(
            run=uuid.uuid4().hex[:12],
            sweep=sweep,
            host=socket.gethostname(),
            pid=os.getpid(),
            process=_process(os.getpid()),
            began=now(),
            beat_s=BEAT_S if beat_s is None else beat_s,
            devices=tuple(f"{machine()} {device}" for device in devices),
        )
        self._watch = Watch(store, clock)
        self._folder = self._watch.folder
        self._lock = threading.RLock()
        self._ledger, self._dead, self._old = self._watch.look()
        self._expected = self._ledger.number  # the newest version there is if nobody else changes it
        self.alone = not self._ledger.runs
        """Whether no other run has changed the ledger since before this was made."""
        self._mine: set[str] = set()  # what this run took and has not given back
        self._lost: set[str] = set()
        self._joined = False
        self._beats = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._live, name="kvray-leases", daemon=True)

    def __enter__(self) -> "Leases":
        """Join the ledger, and beat until the end of the context, which leaves it."""
        self._put_beat()
        self._joined = True
        self._change(set())
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._stop.set()
        self._thread.join(_END_S)
        if self._thread.is_alive() or (kind is not None and issubclass(kind, StoreError)):
            return  # the store does not answer: others will see by its beats that this run is gone
        # Leaving is a courtesy to others, so that it is waited for only a little, and after Ctrl-C not at all.
        hurry = self._folder.files.patience.at_most(_END_S if kind is None else 0.0)
        with self._lock, hurry, contextlib.suppress(StoreError):
            self._joined, self._mine = False, set()
            self._change(set())
            self._folder.delete(BEAT + self.me.run)

    def take(self, artefacts: Collection[str]) -> set[str]:
        """Return which of some artefacts this run holds from now on: those that no other live run holds."""
        with self._lock:
            others = self.held_elsewhere()
            free = {one for one in artefacts if one not in others and one not in self._mine}
            if free:
                self._change(free)
            return {one for one in artefacts if one in self._mine}

    def give_back(self, artefact: str) -> None:
        """Let go of an artefact that has ended; others see it with the next change, or within some seconds."""
        with self._lock:
            self._mine.discard(artefact)

    def held_elsewhere(self) -> dict[str, Holder]:
        """Return what other runs held when the ledger was last looked at."""
        with self._lock:
            ledger = self._ledger
            return {one: ledger.runs[run] for one, run in ledger.held.items() if run != self.me.run}

    def elder(self) -> Holder | None:
        """Return a live run that joined before this one and has some of its devices, None if there is none."""
        with self._lock:
            before = itertools.takewhile(lambda each: each.run != self.me.run, self._ledger.runs.values())
            return next((each for each in before if set(each.devices) & set(self.me.devices)), None)

    def expel(self, runs: Iterable[str]) -> None:
        """Take runs that are known to be dead out of the ledger, with all that they held."""
        with self._lock:
            self._dead = [holder for run in runs if (holder := self._ledger.runs.get(run)) is not None]
            if self._dead:
                self._change(set())

    def lost(self) -> set[str]:
        """Return what other runs have taken from this one since the last call."""
        with self._lock:
            lost, self._lost = self._lost, set()
            return lost

    def _live(self) -> None:
        """Beat, and look at what other runs do, until the end."""
        beaten = time.monotonic()
        while not self._stop.wait(self.me.beat_s if self.alone else min(LOOK_S, self.me.beat_s)):
            # An error may pass; if it does not, this run's own writing meets it, too.
            with contextlib.suppress(StoreError):
                if time.monotonic() - beaten >= self.me.beat_s - LOOK_S:
                    self._put_beat()
                    beaten = time.monotonic()
                self._see()

    def _see(self) -> None:
        """Look at the ledger; change it if runs have died, if this one was taken for dead, or has given back."""
        with self._lock:
            ledger = self._look()
            mine = {one for one, run in ledger.held.items() if run == self.me.run}
            if self._dead or self.me.run not in ledger.runs or (not self.alone and mine != self._mine):
                self._change(set())

    def _look(self) -> Ledger:
        """Read the ledger, and take in what it says of this run and of others."""
        self._ledger, dead, self._old = self._watch.look()
        self._dead = [holder for holder in dead if holder.run != self.me.run]
        if self._ledger.number != self._expected or set(self._ledger.runs) - {self.me.run}:
            self.alone = False
        self._expected = self._ledger.number
        taken = {one for one in self._mine if self._ledger.held.get(one, self.me.run) != self.me.run}
        self._mine -= taken
        self._lost |= taken
        return self._ledger

    def _change(self, wanted: set[str]) -> None:
        """Bring the ledger to what this run knows: without the dead, with what it holds and, if free, ``wanted``."""
        began = time.monotonic()
        while True:
            dead = self._dead
            gone = [holder.run for holder in dead]
            me = replace(self.me, changes=self.me.changes + 1)
            ledger = self._ledger.without([*gone, me.run])
            if self._joined:
                free = [one for one in sorted(self._mine | wanted) if one not in ledger.held]
                # Runs stay in the order in which they joined.
                runs = {**self._ledger.without(gone).runs, me.run: me}
                ledger = replace(ledger, runs=runs, held={**ledger.held, **dict.fromkeys(free, me.run)})
            self._expected = ledger.number + 1
            # Whether this was written, the newest version shows.
            self._folder.put_new(_version(ledger.number + 1), ledger.to_bytes())
            if self._look().runs.get(me.run) == (me if self._joined else None):
                break
            if time.monotonic() - began > _PATIENCE_S:
                raise StoreError(f"{self._folder.place}: other runs change the ledger of leases without a pause")
            time.sleep(random.uniform(0.0, 0.2))
        self.me = me
        if self._joined:
            self._mine = {one for one, run in self._ledger.held.items() if run == me.run}
        for holder in dead:
            say(f"kvray: {holder} has died; what it held is free again")
            self._folder.delete(BEAT + holder.run)
        for name in self._old:
            self._folder.delete(name)

    def _put_beat(self) -> None:
        self._beats += 1
        # Its length changes, too: a listing of S3 tells the time in whole seconds.
        self._folder.put(BEAT + self.me.run, b"." * (1 + self._beats % 16))


def _version(number: int) -> str:
    """Return the name of a version of the ledger."""
    return f"{number:010d}.json"


def _stamp(info: Any) -> object:
    """Return what a listing shows of a file that is written anew: to be compared, never ordered."""
    return info.mtime_ns, info.size


def machine() -> str:
    """Return what tells this machine from others: the id of its boot, else its name; containers on it share that."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


def _process(pid: int) -> str | None:
    """Return what tells a process of this machine from all others, also later ones; None where there is no /proc."""
    try:
        boot = machine()
        # After the name, which may hold anything: the state, and as the 20th the start, in ticks since the boot.
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        # A process number means the same process within one boot, and there within one container.
        where = f"{boot} {os.readlink('/proc/self/ns/pid')}"
        return None if state in "ZX" else f"{where} {pid} {fields[18]}"
    except (OSError, ValueError, IndexError):
        return None


def _gone(process: str | None) -> bool:
    """Return whether a process is known to have ended: it was of this machine, and is no more."""
    mine = _process(os.getpid())
    if process is None or mine is None:
        return False
    machine, pid, _ = process.rsplit(" ", 2)
    return machine == mine.rsplit(" ", 2)[0] and _process(int(pid)) != process
