"""The units of a lane that no seat holds: by model, the most pressing first. Pure."""

import heapq
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping

from kvray.planning.work import Unit


class Backlog:
    """Units that are ready; ``priority`` is the seconds of the unit and of all that waits for its artefact."""

    def __init__(self) -> None:
        self._units: dict[int, Unit] = {}
        self._heaps: dict[str | None, list[tuple[float, int]]] = {}  # of (-priority, number), by model
        self._seconds: defaultdict[str | None, float] = defaultdict(float)

    def __len__(self) -> int:
        return len(self._units)

    @property
    def seconds(self) -> float:
        """Estimated seconds of all units."""
        return sum(self._seconds.values())

    @property
    def priority(self) -> float:
        """The highest priority; -1 if there is nothing."""
        return max((-heap[0][0] for heap in self._heaps.values()), default=-1.0)

    def add(self, unit: Unit, priority: float) -> None:
        self._units[unit.number] = unit
        heapq.heappush(self._heaps.setdefault(unit.model, []), (-priority, unit.number))
        self._seconds[unit.model] += unit.seconds

    def take(self, holding: Collection[str | None], serving: Mapping[str | None, int]) -> Unit | None:
        """Remove and return a unit for a seat that has the models ``holding`` loaded; None if there is none.

        A model that is loaded goes before others, the first named before all; among others that with the most work per
        seat, of which ``serving`` counts those that work for it.
        """
        if not self._heaps:
            return None
        loaded = [model for model in holding if model in self._heaps]
        if not loaded:
            loaded = [max(self._heaps, key=lambda model: self._seconds[model] / (1 + serving.get(model, 0)))]
        return self._remove(heapq.heappop(self._heaps[loaded[0]])[1])

    def drop(self, numbers: Iterable[int]) -> None:
        """Remove units by their numbers, those that are here."""
        for number in self._units.keys() & numbers:
            heap = self._heaps[self._units[number].model]
            heap[:] = [entry for entry in heap if entry[1] != number]
            heapq.heapify(heap)
            self._remove(number)

    def _remove(self, number: int) -> Unit:
        unit = self._units.pop(number)
        self._seconds[unit.model] -= unit.seconds
        if not self._heaps[unit.model]:
            del self._heaps[unit.model], self._seconds[unit.model]
        return unit
