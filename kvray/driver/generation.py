"""Datasets in the making, beside everything else: an actor that runs Ray Data for whatever is ready.

Threads of an interrupted driver would still wait for Ray, and take its process with them; an actor just ends.
"""

import threading
from collections.abc import Sequence
from typing import Any

from kvray.console import Line
from kvray.driver.seats import stalls
from kvray.driver.seats.state import Stall
from kvray.models.reference import BaseModelRef
from kvray.planning.artefacts import Artefact
from kvray.planning.process import Process, this_process
from kvray.store.store import Outcome, Store
from kvray.sweep.model import Runtime

ANSWER_S = 0.5
"""For which a look at the actor waits; what it answers later, the next look takes."""


class Generator:
    """Makes datasets and keeps what there is to tell; a Ray actor of no CPU, of which one thread generates."""

    def __init__(self, store: Store, base: BaseModelRef, runtime: Runtime) -> None:
        self._made_of = store, base, runtime
        self._outcomes: list[Outcome] = []
        self._rows = self._before = 0

    def generate(self, artefacts: Sequence[Artefact]) -> None:
        """Make datasets, whose writings are committed."""
        from kvray.generate.job import generate

        told: set[str] = set()

        def tell(rows: int, ended: Sequence[Outcome]) -> None:
            self._rows = self._before + rows
            told.update(outcome.artefact_id for outcome in ended)
            self._outcomes += ended

        outcomes = generate(artefacts, *self._made_of, tell=tell)
        self._before = self._rows
        self._outcomes += [outcome for outcome in outcomes if outcome.artefact_id not in told]

    def state(self) -> tuple[list[Outcome], int, Process]:
        """Return the outcomes since the last call, the rows made in all, and the process of this actor."""
        import ray

        ended, self._outcomes = self._outcomes, []
        return ended, self._rows, this_process(ray.get_runtime_context().get_node_id())


class Generation:
    """The stage that makes datasets: one batch of them at a time, each as early as it is ready."""

    def __init__(self, store: Store, base: BaseModelRef, runtime: Runtime) -> None:
        self._made_of = store, base, runtime
        self._actor: Any = None
        self._running: Any = None
        self._waiting: list[Artefact] = []
        self._under_way: dict[str, Artefact] = {}
        self._rows = self._total = 0
        self._asked: Any = None
        self._process: Process | None = None
        self._silent_s = 0.0
        self._looks = stalls.Looks()
        self._left = runtime.retries

    @property
    def busy(self) -> bool:
        """Whether datasets are being made or wait for it."""
        return bool(self._waiting or self._under_way)

    def makes(self, artefact_id: str) -> bool:
        """Return whether a dataset is being made, or about to be."""
        return artefact_id in self._under_way or any(one.id == artefact_id for one in self._waiting)

    def add(self, artefact: Artefact) -> None:
        self._waiting.append(artefact)
        self._total += artefact.rows

    def poll(self) -> list[Outcome]:
        """Return how datasets ended since the last call; start what is ready.

        An actor that makes no row for ``runtime.start_minutes`` is ended, and Ray starts it again: any shard may begin
        with a download, so that this is the limit of all.
        """
        outcomes = self._ended() if self._running is not None else []
        if self._waiting and self._running is None:
            self._actor = self._actor or _start(*self._made_of)
            batch, self._waiting = self._waiting, []
            self._under_way = {artefact.id: artefact for artefact in batch}
            self._running = self._actor.generate.remote(batch)
            self._silent_s, self._looks = 0.0, stalls.Looks()
        return outcomes

    def _ended(self) -> list[Outcome]:
        import ray
        from ray.exceptions import RayError

        # In this order: an answer that was asked for after the end tells everything.
        finished = ray.wait([self._running], timeout=0)[0] if self._asked is None else []
        self._asked = self._asked or self._actor.state.remote()
        told: list[Outcome] = []
        rows, died = self._rows, None
        try:
            if ray.wait([self._asked], timeout=ANSWER_S)[0]:
                asked, self._asked = self._asked, None
                told, self._rows, self._process = ray.get(asked)
            if finished and self._asked is None:
                ray.get(finished)
        except RayError as error:
            # Its process died; what it wrote stays, and a further run goes on there.
            finished, died = [self._running], f"generate: {type(error).__name__}"
            self._actor = self._asked = None
        # An actor that Ray has started again tells of all of its batch once more.
        outcomes = [each for each in told if self._under_way.pop(each.artefact_id, None)]
        if finished and self._asked is None:
            outcomes += self._untold(died)
            self._running = None
        self._left = self._made_of[2].retries if outcomes else self._left
        self._watch(progress=bool(outcomes) or self._rows != rows)
        return outcomes

    def _untold(self, died: str | None) -> list[Outcome]:
        """Return how datasets ended of which the actor, at its end, had not told.

        One that dies between its last row and the question, or while it answers, has taken what it knew with it; the
        one that Ray starts in its place knows nothing. Then the store tells, and what it has not is made again.
        """
        untold, self._under_way = self._under_way, {}
        committed = self._made_of[0].read_manifests(list(untold)) if untold else {}
        rest = [artefact for one, artefact in untold.items() if one not in committed]
        if rest and died is None and self._left:
            self._left -= 1
            self._waiting, rest = [*rest, *self._waiting], []
        why = died or "generate ended without saying what became of it"
        return [Outcome(one, None) for one in committed] + [Outcome(artefact.id, why) for artefact in rest]

    def _watch(self, progress: bool) -> None:
        """End the actor if it has made nothing for too long."""
        passed = self._looks.passed()
        self._silent_s = 0.0 if progress else self._silent_s + passed
        store, _, runtime = self._made_of
        if self._running is None or self._process is None or self._silent_s < runtime.start_minutes * 60:
            return
        self._silent_s = 0.0
        why = f"no row for {runtime.start_minutes:g} minutes (runtime.start_minutes)"
        stall = Stall("generate", why, {"generator": self._process})
        threading.Thread(target=stalls.end, args=(stall, store), name="generate", daemon=True).start()

    def line(self) -> Line | None:
        """Return what the display shows, None before there is anything to make."""
        return Line("generate", self._rows, self._total, "rows") if self._total else None


def _start(store: Store, base: BaseModelRef, runtime: Runtime) -> Any:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return (
        ray.remote(Generator)
        .options(
            num_cpus=0,
            max_concurrency=2,
            # A further attempt finds the shards that the one before it wrote.
            max_restarts=runtime.retries,
            max_task_retries=runtime.retries,
            scheduling_strategy=here,
        )
        .remote(store, base, runtime)
    )
