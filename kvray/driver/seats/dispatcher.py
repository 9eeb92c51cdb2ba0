"""The seats of a run as Ray Tune trials: one Tune run, in an actor that also holds the work queue.

A trial is a seat. The :class:`_Opener`, a Tune ``Searcher``, opens one more whenever the queue says that its lane's
work is worth the start, and ends the Tune run when the work is done. Tune places seats, keeps asking for devices that
are not there yet (so that an autoscaler brings them) and tells when one dies. It does not try again: what a dead seat
held goes back to the queue, and the next seat that is opened takes it.
"""

import itertools
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kvray.driver.seats import stalls
from kvray.driver.seats.cluster import lost_nodes, remove_orphans, says_lost
from kvray.driver.seats.demand import Room
from kvray.driver.seats.placement import Capacity, Place
from kvray.driver.seats.queue import HOST, Limits, WorkQueue
from kvray.driver.seats.sources import RemoteSource
from kvray.driver.seats.state import LaneView, Stall
from kvray.errors import KvrayError, MemoryExhaustedError, ResourceError, last_line, passes
from kvray.models.exhaustion import exhaustion
from kvray.planning.work import FINETUNE, Lane, Seat
from kvray.store.places.scratch import remove_abandoned, scratch_directory
from kvray.store.store import Outcome, Store

Call = tuple[str, tuple[Any, ...]]
"""A method of the work queue, by name, and its arguments."""
THREADS = 16
"""Calls that the dispatcher serves at a time; each takes well below a millisecond."""
ANSWER_S = 600.0
"""Without an answer for so long a dispatcher has hung itself."""
END_S = 15.0
"""For which the driver waits until idle seats have ended."""
TIDY_EVERY_S = 10.0
"""Between two looks for what dead processes still hold."""
SEATS_PENDING = 4096
"""Seats that may wait for devices at a time. Tune's own limit is one: an autoscaler would bring node after node."""
_RAISED = re.compile(r"[A-Za-z_][\w.]*(Error|Exception|Exit|Interrupt|Died|Compiler): ")
"""Matches the line of a trace that names the exception."""


@dataclass(frozen=True)
class Opening:
    """A lane, its seats (each gets a name), where one is placed, and what its trial holds itself."""

    lane: Lane
    seat: Seat
    place: Place
    bundle: Mapping[str, float]


Space = Callable[[Capacity, bool], Room]
"""Returns the room for seats on a cluster, given whether datasets are being made there too."""


class Dispatcher:
    """Holds the work queue and runs Tune; a Ray actor of no CPU on the driver's node.

    If it dies its seats end with it, and the driver begins again from the store.
    """

    def __init__(
        self, openings: Sequence[Opening], limits: Limits, room: Space, environment: Mapping[str, str]
    ) -> None:
        """Take the lanes, and what there is room for."""
        import ray

        os.environ.update(environment)
        self._openings = {opening.lane.name: opening for opening in openings}
        home = ray.get_runtime_context().get_node_id()
        self._queue = WorkQueue([opening.lane for opening in openings], limits, lost=lost_nodes, home=home)
        self._room = room
        self._capacity = Capacity()
        self._numbers = itertools.count()

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune stores its searcher and callbacks, which hold this; nothing is ever restored from there

    def run(self) -> None:
        """Open and close seats until the queue is over."""
        import ray

        me = ray.get_runtime_context().current_actor
        with scratch_directory(None, "tune") as scratch:
            _tuner(self, me, list(self._openings.values()), scratch).fit()

    def change(self, calls: Sequence[Call]) -> None:
        """Call methods of the queue, by name, in order."""
        for method, arguments in calls:
            getattr(self._queue, method)(*arguments)

    def see(self, capacity: Capacity) -> None:
        """Take what the cluster has now; until the first call it has nothing."""
        self._capacity = capacity

    def state(self) -> tuple[list[Outcome], list[LaneView], list[Stall]]:
        """Return how artefacts ended since the last call, what each lane does, and which seats are to be ended."""
        return self._queue.outcomes(), self._queue.view(), self._queue.hung()

    def call(self, method: str, seat: str, *arguments: Any) -> Any:
        """Answer a seat; see :class:`RemoteSource`."""
        return getattr(self._queue, method)(seat, *arguments)

    # What the opener and Tune's callbacks ask and tell.

    def open(self) -> dict[str, str] | None:
        """Return the next seat to start, None if none is worth it now."""
        lane = self._queue.wanted(self._room(self._capacity, self._queue.generating))
        if lane is None:
            return None
        name = f"{lane.replace(':', '-').replace('/', '-')}-{next(self._numbers):04d}"
        self._queue.seat(replace(self._openings[lane].seat, name=name))
        return {"seat": name, "lane": lane}

    @property
    def over(self) -> bool:
        return self._queue.over

    def ended(self, seat: str, why: str | None, preempted: bool = False) -> None:
        self._queue.ended(seat, why, preempted)


class Seats:
    """The stage that finetunes, evaluates and writes, as the driver sees it: a dispatcher and what was given to it."""

    def __init__(
        self, openings: Sequence[Opening], limits: Limits, room: Space, capacity: Capacity, store: Store
    ) -> None:
        """Start a dispatcher on this node; ``store`` gets what hung seats were doing. Ray must be initialised."""
        self._arguments = list(openings), limits, room
        self._limits = limits
        self._capacity = capacity
        self._store = store
        self._left = limits.retries
        self._halted = False
        self._given: dict[str, tuple[Any, ...]] = {}  # the arguments of ``add`` of what has not ended
        self._tidied = time.monotonic()
        self._start()

    def change(self, calls: Sequence[Call]) -> None:
        """Call methods of the work queue, by name, in order."""
        for method, arguments in calls:
            if method == "add":
                self._given[arguments[1]] = arguments
            elif method == "drop":
                self._given.pop(arguments[0], None)
            self._halted = self._halted or method == "halt"
        if calls:
            self._dispatcher.change.remote(list(calls))

    def see(self, capacity: Capacity) -> None:
        """Tell what the cluster has now."""
        if capacity != self._capacity:
            self._capacity = capacity
            self._dispatcher.see.remote(capacity)

    def poll(self) -> tuple[list[Outcome], list[LaneView]]:
        """Return how artefacts ended since the last call, and what each lane does.

        Seats that hang are ended. A dispatcher that died, or has hung itself, is started anew with what has not ended,
        as often as work is retried without any being done; then a ResourceError says so.
        """
        import ray
        from ray.exceptions import RayError

        try:
            ended, _ = ray.wait([self._running], timeout=0)
            if ended:
                ray.get(ended)
            outcomes, views, hung = ray.get(self._dispatcher.state.remote(), timeout=ANSWER_S)
        except RayError as error:
            if not self._left:
                raise ResourceError(f"Ray Tune ended: {last_line(error)}") from error
            self._left -= 1
            ray.kill(self._dispatcher)
            self._start()
            # Of a halted one all that it had is left: nobody has begun it here.
            self.change([*([("halt", ())] if self._halted else []), *(("add", a) for a in self._given.values())])
            return [], []
        for outcome in outcomes:
            self._given.pop(outcome.artefact_id, None)
            self._left = self._limits.retries
        for stall in hung:
            threading.Thread(target=stalls.end, args=(stall, self._store), name=stall.seat, daemon=True).start()
        if time.monotonic() - self._tidied >= TIDY_EVERY_S:
            self._tidied = time.monotonic()
            remove_orphans()
        return outcomes, views

    def close(self, wait: bool) -> None:
        """End the seats, those that are idle by themselves if there is time to ``wait`` for them."""
        import ray

        self._dispatcher.change.remote([("close", ())])
        if wait:
            ray.wait([self._running], timeout=END_S)
        ray.kill(self._dispatcher)
        if wait:  # who goes on with this Ray, with another sweep, needs what dead seats held
            ray.wait([self._running], timeout=END_S)
            remove_orphans()
            remove_abandoned()  # the dispatcher's

    def _start(self) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        prefixes = ("RAY_TRAIN_", "TUNE_", "KVRAY_")
        chosen = {name: value for name, value in os.environ.items() if name.startswith(prefixes)}
        actor = ray.remote(Dispatcher).options(num_cpus=0, max_concurrency=THREADS + 1, scheduling_strategy=here)
        self._dispatcher = actor.remote(*self._arguments, {**_ENVIRONMENT, **chosen})
        self._dispatcher.see.remote(self._capacity)
        self._running = self._dispatcher.run.remote()


_ENVIRONMENT = {
    # Tune reads these: no CSV, JSON and TensorBoard files per trial, no tables beside our own progress lines.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "1000000",  # its name is spelt so; we say what is waited for
    "TUNE_MAX_PENDING_TRIALS_PG": str(SEATS_PENDING),
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",  # there is nothing to restore: the store is the state
}


def _tuner(dispatcher: Dispatcher, handle: Any, openings: Sequence[Opening], scratch: str) -> Any:
    from ray import tune
    from ray.tune.search import Searcher

    # Its traces, and its notices on files that it may not write: outcomes say what failed.
    logging.getLogger("ray.tune").setLevel(logging.ERROR if os.environ.get("KVRAY_VERBOSE") else logging.CRITICAL)
    bundles = {each.lane.name: {name: held for name, held in each.bundle.items() if held} for each in openings}

    class Opener(Searcher):  # type: ignore[misc]  # ray is untyped here
        """Opens seats as the queue wants them."""

        def suggest(self, trial_id: str) -> Any:
            return Searcher.FINISHED if dispatcher.over else dispatcher.open()

        def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
            """Callbacks tell the dispatcher, which learns the reason there."""

        def save(self, checkpoint_path: str) -> None:
            """There is nothing to restore: the store is the state."""

        def restore(self, checkpoint_path: str) -> None:
            """There is nothing to restore."""

    class Over(tune.Stopper):  # type: ignore[misc]
        """Ends seats that still wait for devices when there is nothing left to do."""

        def __call__(self, trial_id: str, result: Any) -> bool:
            return False

        def stop_all(self) -> bool:
            return dispatcher.over

    class Watch(tune.Callback):  # type: ignore[misc]
        """Tells the dispatcher which seats have ended."""

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            dispatcher.ended(trial.config["seat"], None)

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            trace = Path(trial.error_file).read_text(errors="replace")
            dispatcher.ended(trial.config["seat"], _cause(trace, trial.config["lane"]), says_lost(trace))

    def resources(config: Mapping[str, Any]) -> Any:
        return tune.PlacementGroupFactory([bundles[config["lane"]]])

    def name(trial: Any) -> str:
        return str(trial.config["seat"])

    trainable = tune.with_parameters(_trial, openings=list(openings), dispatcher=handle)
    return tune.Tuner(
        tune.with_resources(trainable, resources),
        tune_config=tune.TuneConfig(
            search_alg=Opener(), num_samples=-1, trial_name_creator=name, trial_dirname_creator=name
        ),
        run_config=tune.RunConfig(
            name="seats",
            storage_path=scratch,
            verbose=0,
            stop=Over(),
            progress_reporter=tune.CLIReporter(),  # silent; the one for notebooks clears what the cell has shown
            failure_config=tune.FailureConfig(max_failures=0),
            callbacks=[Watch()],
        ),
    )


def _trial(config: dict[str, Any], openings: Sequence[Opening], dispatcher: Any) -> None:
    import ray

    opening = next(each for each in openings if each.lane.name == config["lane"])
    source = RemoteSource(dispatcher, config["seat"])
    source.join(HOST)
    try:
        opening.lane.work(source, replace(opening.seat, name=config["seat"]))
    except MemoryExhaustedError as error:
        source.died(str(error), final=True)
    except KvrayError as error:
        if passes(error):
            raise  # another seat may find what this one did not
        ray.get(dispatcher.change.remote([("refuse", (opening.lane.name, str(error)))]))


def _cause(trace: str, lane: str) -> str:
    """Return what ended a seat, in a line, from what Tune wrote about it."""
    lines = [line.strip() for line in trace.splitlines() if line.strip()]
    # Libraries write advice below the error itself, so the last line is not always what happened.
    raised = [line for line in lines if _RAISED.match(line)]
    last = next(iter([*raised[-1:], *lines[-1:]]), "without a word")
    found = exhaustion(trace, finetune=lane == FINETUNE)
    last = found.sentence if found else last
    return f"its process died, retries included: {last}; KVRAY_VERBOSE=1 shows the trace"
