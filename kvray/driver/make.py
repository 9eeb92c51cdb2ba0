"""Makes what a run lacks: whatever is ready is given to its stage, and each artefact that ends makes others ready.

    ready ──► generation (datasets)            ──┐
          ──► seats (finetunes, cells, writings) ─┼─► outcomes ──► what is ready now
          ──► threads (all that an API makes)  ──┘

There are no barriers: the base model is asked while finetunes train, and a finetune as soon as it is committed. The
driver holds nothing that the store does not, but what is under way.
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence

from kvray.console import Show, board
from kvray.driver.cluster import Cluster
from kvray.driver.connection import Connection
from kvray.driver.generation import Generation
from kvray.driver.graph import Graph
from kvray.driver.lanes import Space, lane_of, opening, units, works
from kvray.driver.local import Threads
from kvray.driver.placement import Patience
from kvray.driver.progress import Lines
from kvray.driver.queue import LaneView
from kvray.driver.seats import Call, Opening, Seats
from kvray.errors import InputError
from kvray.models.reference import BaseModelRef
from kvray.planning.artefacts import Artefact, asks_api
from kvray.planning.work import Lane
from kvray.store.store import Outcome, Store
from kvray.sweep.model import Runtime

POLL_S = 0.2
"""Between two looks at the stages."""

Ended = Callable[[Outcome], None]


class Making:
    """One run's stages, and what of its plan is ready, under way and waiting."""

    def __init__(
        self,
        todo: Sequence[Artefact],
        stored: Mapping[str, Collection[str]],
        seconds: Mapping[str, float],
        store: Store,
        base: BaseModelRef,
        runtime: Runtime,
        connection: Connection,
    ) -> None:
        """Open what makes ``todo``, whose files ``stored`` and estimated ``seconds`` are given by id.

        Raises ResourceError if something can never be placed, InputError if it cannot be as the sweep asks.
        """
        self._graph = Graph(todo, seconds)
        self._by_id = {artefact.id: artefact for artefact in todo}
        self._stored = stored
        self._api = {artefact.id for artefact in todo if asks_api(artefact, base)}
        self._generation = Generation(store, base, runtime)
        self._refused: dict[str, str] = {}
        self._cluster = Cluster(connection.local)
        self._connection = connection
        self._patience = Patience(runtime)
        self._openings: dict[str, Opening] = {}
        self._expected: dict[str, bool] = {}
        self._generating = False
        threads: list[Lane] = []
        for lane, model, work in works(todo, store, base, runtime):
            if isinstance(model, InputError):
                self._refused[lane] = str(model)
            elif any(lane_of(self._by_id[one]) == lane for one in self._api):
                threads.append(Lane(lane, work, {}, most=1, start_s=0.0))
            else:
                self._openings[lane] = opening(lane, work, model, runtime, self._cluster)
        places = {lane: each.place for lane, each in self._openings.items()}
        space = Space(self._cluster, runtime, places)
        self._seats = Seats(list(self._openings.values()), runtime.retries, space) if self._openings else None
        self._threads = Threads(threads) if threads else None
        self._lines = Lines(self._by_id, {lane: place.needs["GPU"] for lane, place in places.items()})

    def run(self, ended: Ended) -> None:
        """Make everything; ``ended`` is told of every artefact, those that cannot be made for another's failure too.

        Raises ResourceError if nothing can be placed for too long, or an API serves nothing.
        """
        with board() as show:
            try:
                while self._graph.left:
                    outcomes = self._start_ready()
                    made, views = self._poll()
                    for outcome in [*outcomes, *made]:
                        self._end(outcome, ended)
                    self._show(show, views)
                    if not made:
                        time.sleep(POLL_S)
            finally:
                for stage in (self._seats, self._threads):
                    if stage is not None:
                        stage.close(wait=not self._connection.ends)

    def _start_ready(self) -> list[Outcome]:
        """Give what is ready to its stage; return how that ended which cannot even be started."""
        calls: list[tuple[Artefact, Call]] = []
        refused = []
        for artefact in self._graph.ready():
            if artefact.kind == "dataset":
                self._generation.add(artefact)
            elif (error := self._refused.get(lane_of(artefact))) is not None:
                refused.append(Outcome(artefact.id, error))
            else:
                parts = units(artefact, self._seconds(artefact), self._stored.get(artefact.id, ()))
                call = ("add", (lane_of(artefact), artefact.id, parts, self._graph.after(artefact.id)))
                calls.append((artefact, call))
        for artefact, needs in self._graph.waiting():
            soon = all(need.kind == "dataset" and self._generation.makes(need.id) for need in needs)
            if artefact.kind != "dataset" and self._expected.get(artefact.id) != soon:
                self._expected[artefact.id] = soon
                seconds, after = self._seconds(artefact), self._graph.after(artefact.id)
                calls.append((artefact, ("expect", (lane_of(artefact), artefact.id, seconds, after, soon))))
        if self._generation.busy != self._generating and self._seats is not None:
            self._generating = self._generation.busy
            self._seats.change([("generate", (self._generating,))])
        for stage, of_api in ((self._seats, False), (self._threads, True)):
            if stage is not None:
                stage.change([call for artefact, call in calls if (artefact.id in self._api) == of_api])
        return refused

    def _seconds(self, artefact: Artefact) -> float:
        return self._graph.seconds(artefact.id)

    def _poll(self) -> tuple[list[Outcome], list[LaneView]]:
        outcomes, views = self._generation.poll(), []
        for stage in (self._seats, self._threads):
            if stage is not None:
                ended, lanes = stage.poll()
                outcomes += ended
                views += lanes
        pending = [self._openings[view.name] for view in views if view.name in self._openings and view.pending]
        placed = any(view.held for view in views) or self._generation.busy
        self._patience.look([each.place.shape for each in pending], placed, self._cluster.capacity(), time.monotonic())
        return outcomes, views

    def _end(self, outcome: Outcome, ended: Ended) -> None:
        ended(outcome)
        if outcome.error is None:
            self._graph.made(outcome.artefact_id)
            return
        for lost in self._graph.failed(outcome.artefact_id):
            for stage in (self._seats, self._threads):
                if stage is not None:
                    stage.change([("drop", (lost,))])
            ended(Outcome(lost, f"needs {outcome.artefact_id}, which failed"))

    def _show(self, show: Show, views: Sequence[LaneView]) -> None:
        waiting = list(self._graph.waiting())
        generation = self._generation.line()
        lines = [generation] if generation else []
        absent: dict[str, list[Artefact]] = {}
        for artefact, _ in waiting:
            if artefact.kind != "dataset":
                absent.setdefault(lane_of(artefact), []).append(artefact)
        lines += [self._lines.of_lane(view, absent.get(view.name, [])) for view in views]
        gpus = sum(node.get("GPU", 0.0) for node in self._cluster.capacity().nodes)
        show([line for line in lines if line.total], self._lines.of_all(views, waiting, gpus))
