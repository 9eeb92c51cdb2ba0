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
from kvray.driver.generation import Generation
from kvray.driver.graph import Graph
from kvray.driver.progress import Lines
from kvray.driver.seats.cluster import Cluster
from kvray.driver.seats.dispatcher import Call, Seats
from kvray.driver.seats.lanes import Lanes, Space, lane_of, units
from kvray.driver.seats.placement import check_wait
from kvray.driver.seats.queue import Limits
from kvray.driver.seats.state import LaneView
from kvray.driver.seats.threads import Threads
from kvray.planning.artefacts import Artefact
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
        lanes: Lanes,
        generation: Generation,
        runtime: Runtime,
        cluster: Cluster,
        store: Store,
    ) -> None:
        """Open the ``lanes`` that make ``todo``, whose files ``stored`` and estimated ``seconds`` are given by id."""
        self._graph = Graph(todo, seconds)
        self._by_id = {artefact.id: artefact for artefact in todo}
        self._stored = stored
        self._lanes = lanes
        self._generation = generation
        self._cluster = cluster
        self._runtime = runtime
        self._placed_at = time.monotonic()
        self._places = {each.lane.name: each.place for each in lanes.openings}
        space = Space(runtime, self._places)
        limits = Limits(runtime.retries, runtime.stall_minutes * 60, runtime.start_minutes * 60)
        seats = Seats(lanes.openings, limits, space, cluster.capacity(), store) if lanes.openings else None
        self._seats = seats
        self._threads = Threads(lanes.threads) if lanes.threads else None
        self._stages = [stage for stage in (self._seats, self._threads) if stage is not None]
        self._by_thread = {lane.name for lane in lanes.threads}
        self._lines = Lines(self._by_id, {lane: place.needs["GPU"] for lane, place in self._places.items()})
        self._expected: dict[str, bool] = {}
        self._generating = False

    def run(self, ended: Ended, wait: bool) -> None:
        """Make everything; ``ended`` is told of every artefact, those that cannot be made for another's failure too.

        With ``wait`` seats have ended, or have had some seconds for it, when this returns.

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
            except BaseException:
                wait = False  # what is under way is to end now
                raise
            finally:
                for stage in self._stages:
                    stage.close(wait)

    def _start_ready(self) -> list[Outcome]:
        """Give what is ready to its stage; return how that ended which cannot even be started."""
        calls: list[tuple[Artefact, Call]] = []
        refused = []
        for artefact in self._graph.ready():
            if artefact.kind == "dataset":
                self._generation.add(artefact)
            elif (error := self._lanes.refused.get(lane_of(artefact))) is not None:
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
        for stage in self._stages:
            by_thread = stage is self._threads
            stage.change([call for artefact, call in calls if (lane_of(artefact) in self._by_thread) == by_thread])
        return refused

    def _seconds(self, artefact: Artefact) -> float:
        return self._graph.seconds(artefact.id)

    def _poll(self) -> tuple[list[Outcome], list[LaneView]]:
        outcomes = self._generation.poll()
        views: list[LaneView] = []
        for stage in self._stages:
            ended, lanes = stage.poll()
            outcomes += ended
            views += lanes
        capacity = self._cluster.capacity()
        if self._seats is not None:
            self._seats.see(capacity)
        pending = [self._places[view.name].shape for view in views if view.name in self._places and view.pending]
        if not pending or self._generation.busy or any(view.held for view in views):
            self._placed_at = time.monotonic()
        check_wait(pending, time.monotonic() - self._placed_at, capacity, self._runtime)
        return outcomes, views

    def _end(self, outcome: Outcome, ended: Ended) -> None:
        ended(outcome)
        if outcome.error is None:
            self._graph.made(outcome.artefact_id)
            return
        for lost in self._graph.failed(outcome.artefact_id):
            for stage in self._stages:
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
