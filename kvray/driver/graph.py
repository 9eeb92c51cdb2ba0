"""What of a plan is ready, what waits for what, and how long the longest chain behind an artefact takes. Pure."""

from collections.abc import Collection, Iterable, Mapping, Sequence

from kvray.planning.artefacts import Artefact


class Graph:
    """The artefacts that a run is to make: waiting for others, under way, or ended.

    An artefact is ready once all that it needs is committed. ``seconds`` estimate each one's making.
    """

    def __init__(self, todo: Sequence[Artefact], seconds: Mapping[str, float]) -> None:
        self._artefacts = {artefact.id: artefact for artefact in todo}
        self._seconds = seconds
        self._open = {one.id: {need for need in one.needs if need in self._artefacts} for one in todo}
        self._waiting = dict(self._artefacts)
        self._dependents: dict[str, list[str]] = {}
        for artefact in todo:
            for need in self._open[artefact.id]:
                self._dependents.setdefault(need, []).append(artefact.id)
        self._after: dict[str, float] = {}
        for artefact in reversed(todo):  # plans are in dependency order
            behind = self._dependents.get(artefact.id, [])
            self._after[artefact.id] = max((self.seconds(one) + self._after[one] for one in behind), default=0.0)
        self._left = set(self._artefacts)

    def seconds(self, artefact_id: str) -> float:
        """Return the estimated seconds of making an artefact alone."""
        return self._seconds.get(artefact_id, 0.0)

    def after(self, artefact_id: str) -> float:
        """Return the seconds of the longest chain of artefacts that waits for one."""
        return self._after[artefact_id]

    @property
    def left(self) -> bool:
        """Whether artefacts are still to end."""
        return bool(self._left)

    def open(self, artefact_id: str) -> bool:
        """Return whether an artefact is still to end."""
        return artefact_id in self._left

    def ready(self) -> list[Artefact]:
        """Return the artefacts that have become ready since the last call, those with the longest chain first."""
        found = [artefact for artefact in self._waiting.values() if not self._open[artefact.id]]
        for artefact in found:
            del self._waiting[artefact.id]
        return sorted(found, key=lambda one: -(self.seconds(one.id) + self._after[one.id]))

    def waiting(self) -> Iterable[tuple[Artefact, Sequence[Artefact]]]:
        """Yield each artefact that waits, with the artefacts that it waits for."""
        for artefact in self._waiting.values():
            if needs := self._open[artefact.id]:
                yield artefact, [self._artefacts[need] for need in needs]

    def made(self, artefact_id: str) -> None:
        """Note a commit, which may make others ready."""
        self._left.discard(artefact_id)
        for one in self._dependents.get(artefact_id, []):
            self._open[one].discard(artefact_id)

    def leave(self, under_way: Collection[str] = ()) -> list[str]:
        """Let nothing more become ready, and give up all but what is ``under_way``; return the ids of that."""
        self._waiting.clear()
        given_up = [one for one in self._artefacts if one in self._left and one not in under_way]
        self._left.difference_update(given_up)
        return given_up

    def failed(self, artefact_id: str) -> list[str]:
        """Note a failure; return the ids of all that can therefore not be made, nearest first."""
        self._left.discard(artefact_id)
        lost: dict[str, None] = {}
        front = [artefact_id]
        while front:
            front = [one for need in front for one in self._dependents.get(need, []) if one in self._left]
            for one in front:
                self._left.discard(one)
                self._waiting.pop(one, None)
                lost[one] = None
        return list(lost)
