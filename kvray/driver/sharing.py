"""What a run may begin with, when other runs make artefacts of the same store: what is leased to it, and not yet there.

An artefact that another run holds is waited for, and taken as it is once committed there; if that run fails at it, or
dies, this one makes it. While others are alive a run leases only somewhat more than its seats work at, so that the
rest is shared. A second run with a Ray of its own on the same GPUs waits for the first to end.
"""

import os
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from kvray.console import Line, say
from kvray.driver.connection import asked_for
from kvray.planning.artefacts import Artefact
from kvray.store.leases import Holder, Leases
from kvray.store.manifest import Presence, hardware
from kvray.store.store import Store
from kvray.sweep.model import Runtime

AHEAD = 8
"""Artefacts of a stage that a run leases at least, when it is not alone."""
PER_SEAT = 4
"""The same, for each of the stage's seats: cells are small beside the start of an engine."""
CHANGE_S = 1.0
"""Seconds between two changes of the leases in a bucket, which cost some requests each, however much they take."""


def gpus(runtime: Runtime) -> list[str]:
    """Return the GPUs of this machine that a Ray of the run's own would take; none where it joins one that is there."""
    if asked_for(runtime) is not None:
        return []
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [each.strip() for each in chosen.split(",") if each.strip() not in ("", "-1")]
    return [str(number) for number in range(len(hardware()["gpus"]))]


@dataclass
class Begun:
    """What :meth:`Sharing.begin` found of artefacts that are ready, by id.

    Attributes:
        leased: to be made by this run, each with the files of it that are there.
        committed: made by another run meanwhile.
        held: being made by another run.
    """

    leased: dict[str, Collection[str]] = field(default_factory=dict)
    committed: list[str] = field(default_factory=list)
    held: Collection[str] = ()


class Sharing:
    """Leases the artefacts of a run as they become ready, and follows those that other runs make."""

    def __init__(self, store: Store, leases: Leases, listing: Mapping[str, Presence]) -> None:
        """Take what the store has of the run's artefacts, listed after ``leases`` were made."""
        self._store = store
        self._leases = leases
        self._listing = listing
        self._open: Counter[str] = Counter()  # leased and not ended, by kind
        self._kinds: dict[str, str] = {}  # of the same, by id
        self._changed = -CHANGE_S
        self._waited: dict[str, Holder] = {}
        self._named: set[str] = set()  # runs that a line has named
        self._elsewhere = 0

    def begin(self, ready: Sequence[Artefact], seats: Mapping[str, int]) -> Begun:
        """Lease what is ready, in order; ``seats`` are those that this run has, by kind of artefact.

        What of it is damaged is discarded, and then to be made like the rest.
        """
        if ready and (elder := self._leases.elder()) is not None:
            if elder.run not in self._named:
                self._named.add(elder.run)
                say(f"kvray: {elder} has this machine's GPUs; waiting for it to end")
            self._waited = dict.fromkeys((one.id for one in ready), elder)
            return Begun(held=self._waited)
        others = self._leases.held_elsewhere() if ready else {}
        self._follow({one.id: others[one.id] for one in ready if one.id in others})
        begun = Begun(held=self._waited)
        kinds: Mapping[str, str] = {one.id: one.kind for one in ready if one.id not in others}
        if not self._leases.alone:
            kinds = self._share(kinds, seats)
        if not kinds or (self._store.remote and time.monotonic() - self._changed < CHANGE_S):
            return begun
        taken = self._leases.take(kinds)
        self._changed = time.monotonic()
        for one, found in self._look([one for one in kinds if one in taken]).items():
            if found.state == "committed":
                self._elsewhere += 1
                self._leases.give_back(one)
                begun.committed.append(one)
                continue
            if found.state == "damaged":
                say(f"kvray: {one} is damaged and will be made again: {'; '.join(self._store.problems(one))}")
                self._store.discard(one)
            begun.leased[one] = found.files if found.state != "damaged" else ()
            self._open[kinds[one]] += 1
            self._kinds[one] = kinds[one]
        return begun

    def end(self, artefact_id: str) -> None:
        """Give back what has been made or has failed."""
        kind = self._kinds.pop(artefact_id, None)
        if kind is not None:
            self._open[kind] -= 1
            self._leases.give_back(artefact_id)

    def holding(self) -> set[str]:
        """Return what is leased and has not ended."""
        return set(self._kinds)

    def lost(self) -> set[str]:
        """Return what was leased and is not any more, as another run took this one for dead."""
        lost = {one for one in self._leases.lost() if one in self._kinds}
        for one in lost:
            self._open[self._kinds.pop(one)] -= 1
        return lost

    def line(self) -> Line | None:
        """Return what the display shows of other runs' work, None if nothing was ever waited for."""
        total = self._elsewhere + len(self._waited)
        note = ", ".join(dict.fromkeys(f"run {holder.run} on {holder.host}" for holder in self._waited.values()))
        return Line("made elsewhere", self._elsewhere, total, "artefacts", note) if total else None

    def _share(self, kinds: Mapping[str, str], seats: Mapping[str, int]) -> dict[str, str]:
        """Return of some artefacts, by id and kind, those that there is work for soon."""
        left = {kind: max(AHEAD, PER_SEAT * seats.get(kind, 0)) - self._open[kind] for kind in set(kinds.values())}
        chosen = {}
        for one, kind in kinds.items():
            if left[kind] > 0:
                left[kind] -= 1
                chosen[one] = kind
        return chosen

    def _look(self, taken: Sequence[str]) -> Mapping[str, Presence]:
        """Return what is there of artefacts that have just been leased."""
        known = {one: self._listing[one] for one in taken}
        if self._leases.alone:
            return known
        found = self._store.listing(taken, apart=True)
        # Where a manifest is still the same, the first listing may know more: it may have read all bytes.
        same = {one for one in taken if found[one].committed_ns == known[one].committed_ns is not None}
        return {one: known[one] if one in same else found[one] for one in taken}

    def _follow(self, waited: dict[str, Holder]) -> None:
        """Note what other runs make of what is ready here, and name each run once."""
        self._waited = waited
        for holder in {holder.run: holder for holder in waited.values()}.values():
            if holder.run not in self._named:
                self._named.add(holder.run)
                number = sum(each.run == holder.run for each in waited.values())
                say(f"kvray: {holder} makes {number} of these; waiting for {'them' if number > 1 else 'it'}")
