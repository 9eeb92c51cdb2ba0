"""The lines that a run shows: a stage each, and one on all of them. Pure."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from kvray.console import Line, duration
from kvray.driver.seats.state import LaneView
from kvray.planning.artefacts import STAGE_NAMES, Artefact
from kvray.planning.work import FINETUNE

_NAMED = 2
"""Finetunes under way that a line names; the others are counted."""
_SETTLED_S = 10.0
"""Seconds of a run after which its rate says how long the rest takes."""

Waiting = tuple[Artefact, Sequence[Artefact]]
"""An artefact, and those that it waits for."""


@dataclass
class Lines:
    """What to show of a run: ``lines(...)`` as often as there is news. ``gpus`` are those that each lane's seat holds.

    ``todo`` are all artefacts of the run, by id.
    """

    todo: Mapping[str, Artefact]
    gpus: Mapping[str, float]
    clock: Callable[[], float] = time.monotonic
    _since: dict[str, float] = field(default_factory=dict)

    def of_lane(self, view: LaneView, absent: Sequence[Artefact]) -> Line:
        """Return the line of a lane, of which some artefacts are still ``absent`` as they wait for others."""
        stage, trains = view.name.partition(":")[0], view.name == FINETUNE
        total = view.total + sum(1 if trains else artefact.rows for artefact in absent)
        noted = self._finetunes(view) if trains else self._rates(view)
        seat = "worker group" if trains else "engine"
        states = [(view.starting, "starting"), (view.pending, "waiting for a place"), (view.idle, "idle")]
        noted += [f"{number} {seat}{'s' * (number > 1)} {state}" for number, state in states if number]
        return Line(stage, view.done, total, "finetunes" if trains else "rows", ", ".join(noted))

    def of_all(self, views: Sequence[LaneView], waiting: Sequence[Waiting], gpus: float) -> str:
        """Return one line on everything: GPUs of the cluster that are busy, what waits for what, the time left."""
        held = sum(view.held * self.gpus.get(view.name, 0.0) for view in views)
        parts = [f"{held:g} of {gpus:g} GPUs held"] if held or gpus else []
        kinds: dict[tuple[str, str], int] = {}
        for artefact, needs in waiting:
            key = STAGE_NAMES[artefact.kind], STAGE_NAMES[needs[-1].kind]
            kinds[key] = kinds.get(key, 0) + 1
        parts += [f"{number} of {stage} wait for {needed}" for (stage, needed), number in kinds.items()]
        seats = sum(view.held for view in views)
        left = sum(view.left_s for view in views) / max(1, seats)
        return ", ".join([*parts, *([f"about {duration(left)} left"] if seats and left >= 1 else [])])

    def _finetunes(self, view: LaneView) -> list[str]:
        named = [f"{self.todo[one].name} {100 * share:.0f}% {note}".rstrip() for one, share, note in view.under_way]
        return [*named[:_NAMED], *([f"{len(named) - _NAMED} more"] if len(named) > _NAMED else [])]

    def _rates(self, view: LaneView) -> list[str]:
        if not view.done:
            return []
        since = self._since.setdefault(view.name, self.clock())
        rate = view.done / max(self.clock() - since, 1e-9)
        notes = [note for _, _, note in view.under_way if note]
        return [*([f"{rate:,.0f} rows/s"] if self.clock() - since > 1 else []), *dict.fromkeys(notes[:1])]
