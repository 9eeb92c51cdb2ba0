"""Makes what a run lacks: whatever is ready is given to its stage, and each artefact that ends makes others ready.

    ready ──► generation (datasets)            ──┐
          ──► seats (finetunes, cells, writings) ─┼─► outcomes ──► what is ready now
          ──► threads (all that an API makes)  ──┘

There are no barriers: the base model is asked while finetunes train, and a finetune as soon as it is committed. What is
ready is leased first (:mod:`kvray.driver.sharing`); what another run makes is waited for, and then as good as made. The
driver holds nothing that the store does not, but what is under way.
"""

import time
from collections import Counter
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
from kvray.driver.sharing import Sharing
from kvray.driver.spending import Spending
from kvray.planning.artefacts import Artefact
from kvray.planning.work import EVALUATE, FINETUNE
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
        sharing: Sharing,
        seconds: Mapping[str, float],
        lanes: Lanes,
        generation: Generation,
        runtime: Runtime,
        cluster: Cluster,
        store: Store,
        spending: Spending | None = None,
    ) -> None:
        """Open the ``lanes`` that make ``todo``, whose estimated ``seconds`` are given by id.

        ``spending`` is told what seats hold; once it says that the budget is reached, nothing more begins.
        """
        self._spending = spending
        self._halted = False
        self._graph = Graph(todo, seconds)
        self._by_id = {artefact.id: artefact for artefact in todo}
        self._sharing = sharing
        self._ready: dict[str, Artefact] = {}  # not leased so far
        self._views: list[LaneView] = []
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
                    if not self._halted and self._spending is not None and self._spending.reached:
                        self._halt(ended)
                    outcomes = self._leave() if self._halted else self._start_ready()
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
        """Give what is ready, and leased, to its stage; return how that ended which needs no stage any more."""
        calls = self._leave_lost()
        self._ready |= {artefact.id: artefact for artefact in self._graph.ready()}
        begun = self._sharing.begin(list(self._ready.values()), self._held())
        outcomes = [Outcome(one, None, elsewhere=True) for one in begun.committed]
        for one, stored in begun.leased.items():
            artefact = self._ready.pop(one)
            if artefact.kind == "dataset":
                self._generation.add(artefact)
            elif (error := self._lanes.refused.get(lane_of(artefact))) is not None:
                outcomes.append(Outcome(one, error))
            else:
                parts = units(artefact, self._seconds(artefact), stored)
                calls.append((artefact, ("add", (lane_of(artefact), one, parts, self._graph.after(one)))))
                self._expected.pop(one, None)
        calls += self._expectations(begun.held)
        if self._generation.busy != self._generating and self._seats is not None:
            self._generating = self._generation.busy
            self._seats.change([("generate", (self._generating,))])
        for stage in self._stages:
            by_thread = stage is self._threads
            stage.change([call for artefact, call in calls if (lane_of(artefact) in self._by_thread) == by_thread])
        return outcomes

    def _halt(self, ended: Ended) -> None:
        """Begin nothing more: what is under way ends, all else is left."""
        self._halted = True
        for stage in self._stages:
            stage.change([("halt", ())])
        self._ready = {}
        for one in self._graph.leave(self._sharing.holding()):
            ended(Outcome(one, None, left=True))

    def _leave(self) -> list[Outcome]:
        """Return as left what another run took from this one, which is not waited for any more."""
        lost = [one for one in self._sharing.lost() if self._graph.open(one)]
        for stage in self._stages:
            stage.change([("drop", (one,)) for one in lost])
        return [Outcome(one, None, left=True) for one in lost]

    def _expectations(self, elsewhere: Collection[str]) -> list[tuple[Artefact, Call]]:
        """Return what seats are to be told of work to come: of that which changed since the last call."""
        calls: list[tuple[Artefact, Call]] = []
        expected = {artefact.id: (artefact, self._soon(needs)) for artefact, needs in self._graph.waiting()}
        expected |= {one: (artefact, True) for one, artefact in self._ready.items() if one not in elsewhere}
        for one, (artefact, soon) in expected.items():
            if artefact.kind != "dataset" and self._expected.get(one) != soon:
                self._expected[one] = soon
                seconds, after = self._seconds(artefact), self._graph.after(one)
                calls.append((artefact, ("expect", (lane_of(artefact), one, seconds, after, soon))))
        for one in [each for each in elsewhere if each in self._expected]:
            del self._expected[one]  # no seat is to wait for what another run makes
            calls.append((self._by_id[one], ("drop", (one,))))
        return calls

    def _soon(self, needs: Sequence[Artefact]) -> bool:
        return all(need.kind == "dataset" and self._generation.makes(need.id) for need in needs)

    def _leave_lost(self) -> list[tuple[Artefact, Call]]:
        """Leave to other runs what they took from this one, until they give it back; return what seats are told."""
        lost = [self._by_id[one] for one in self._sharing.lost() if self._graph.open(one)]
        self._ready |= {artefact.id: artefact for artefact in lost}
        # A dataset is made to its end: it has the same bytes, whoever makes it.
        return [(artefact, ("drop", (artefact.id,))) for artefact in lost if artefact.kind != "dataset"]

    def _held(self) -> Counter[str]:
        """Return how many seats this run has by the kind of what they make."""
        kinds = {FINETUNE: "finetune", EVALUATE: "predictions"}
        held: Counter[str] = Counter()
        for view in self._views:
            held[kinds.get(view.name, "writing")] += view.held
        return held

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
        if self._spending is not None:
            self._spending.hold(views, {lane: place.needs["GPU"] for lane, place in self._places.items()})
        pending = [self._places[view.name].shape for view in views if view.name in self._places and view.pending]
        if not pending or self._generation.busy or any(view.held for view in views):
            self._placed_at = time.monotonic()
        check_wait(pending, time.monotonic() - self._placed_at, capacity, self._runtime)
        self._views = views
        return outcomes, views

    def _end(self, outcome: Outcome, ended: Ended) -> None:
        lost = self._ready.pop(outcome.artefact_id, None)
        if not self._graph.open(outcome.artefact_id):
            return  # another run made it, too
        if lost is not None and outcome.error is not None:
            self._ready[lost.id] = lost  # and another run is at it
            return
        self._sharing.end(outcome.artefact_id)
        if outcome.left:
            self._graph.leave(self._sharing.holding())
        ended(outcome)
        if outcome.left:
            return
        if outcome.error is None:
            self._graph.made(outcome.artefact_id)
            return
        for behind in self._graph.failed(outcome.artefact_id):
            for stage in self._stages:
                stage.change([("drop", (behind,))])
            ended(Outcome(behind, f"needs {outcome.artefact_id}, which failed"))

    def _show(self, show: Show, views: Sequence[LaneView]) -> None:
        waiting = list(self._graph.waiting())
        lines = [line for line in (self._sharing.line(), self._generation.line()) if line]
        absent: dict[str, list[Artefact]] = {}
        for artefact, _ in waiting:
            if artefact.kind != "dataset":
                absent.setdefault(lane_of(artefact), []).append(artefact)
        lines += [self._lines.of_lane(view, absent.get(view.name, [])) for view in views]
        gpus = sum(node.get("GPU", 0.0) for node in self._cluster.capacity().nodes)
        show([line for line in lines if line.total], self._lines.of_all(views, waiting, gpus))
