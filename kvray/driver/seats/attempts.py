"""How often work may die: deaths are counted since the last progress, and those of lost nodes never. Pure."""

import time
from collections import Counter
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass

SETTLED_S = 30.0
"""Seconds after a death by which Ray knows of a lost node; its health check takes 15. Until then the node counts as
alive, and its processes as unreachable."""

Lost = Callable[[], Collection[str]]
"""Returns the ids of the nodes that were lost."""


@dataclass(frozen=True)
class _Death:
    at: float
    nodes: frozenset[str]
    of: tuple[Hashable, ...]


class Attempts:
    """Counts the deaths of units, and of the starts of a lane's seats, by whatever key.

    ``retries`` further attempts are granted from the last progress on. A death on another node than ``home``, which
    cannot be lost before whoever asks, counts once Ray has had the time to tell whether that node was lost; until then
    it bounds nothing.
    """

    def __init__(
        self, retries: int, lost: Lost = frozenset, home: str = "", clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._retries = retries
        self._lost = lost
        self._home = home
        self._clock = clock
        self._counts: Counter[Hashable] = Counter()
        self._doubted: list[_Death] = []

    def progress(self, key: Hashable) -> None:
        """Grant all attempts anew."""
        self._counts.pop(key, None)
        self._doubted = [
            _Death(each.at, each.nodes, tuple(one for one in each.of if one != key)) for each in self._doubted
        ]

    def died(self, keys: Collection[Hashable], nodes: Collection[str]) -> set[Hashable]:
        """Count a death on ``nodes`` of what ``keys`` name; return which of them have had all their attempts."""
        self._settle()
        if away := frozenset(nodes) - {self._home}:
            self._doubted.append(_Death(self._clock(), away, tuple(keys)))
            self._settle()
        else:
            self._counts.update(keys)
        return {key for key in keys if self._counts[key] > self._retries}

    def _settle(self) -> None:
        """Forget the deaths of lost nodes, and count others after a while."""
        if not self._doubted:
            return
        lost, now = set(self._lost()), self._clock()
        self._doubted = [each for each in self._doubted if not each.nodes & lost]
        for each in [each for each in self._doubted if now - each.at >= SETTLED_S]:
            self._doubted.remove(each)
            self._counts.update(each.of)
