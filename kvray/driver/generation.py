"""Datasets in the making, beside everything else: an actor that runs Ray Data for whatever is ready.

Threads of an interrupted driver would still wait for Ray, and take its process with them; an actor just ends.
"""

from collections.abc import Sequence
from typing import Any

from kvray.console import Line
from kvray.models.reference import BaseModelRef
from kvray.planning.artefacts import Artefact
from kvray.store.store import Outcome, Store
from kvray.sweep.model import Runtime


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

    def state(self) -> tuple[list[Outcome], int]:
        """Return the outcomes since the last call, and the rows made in all."""
        ended, self._outcomes = self._outcomes, []
        return ended, self._rows


class Generation:
    """The stage that makes datasets: one batch of them at a time, each as early as it is ready."""

    def __init__(self, store: Store, base: BaseModelRef, runtime: Runtime) -> None:
        self._made_of = store, base, runtime
        self._actor: Any = None
        self._running: Any = None
        self._waiting: list[Artefact] = []
        self._under_way: dict[str, Artefact] = {}
        self._rows = self._total = 0

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
        """Return how datasets ended since the last call; start what is ready."""
        import ray
        from ray.exceptions import RayError

        outcomes: list[Outcome] = []
        if self._running is not None:
            finished, _ = ray.wait([self._running], timeout=0)
            try:
                ended, self._rows = ray.get(self._actor.state.remote())
                outcomes += ended
                if finished:
                    ray.get(finished)
                    silent = "generate ended without saying what became of it"
            except RayError as error:
                # Its process died; what it wrote stays, and a further run goes on there.
                finished, silent, self._actor = [self._running], f"generate: {type(error).__name__}", None
            for outcome in outcomes:
                self._under_way.pop(outcome.artefact_id, None)
            if finished:
                outcomes += [Outcome(artefact_id, silent) for artefact_id in self._under_way]
                self._under_way, self._running = {}, None
        if self._waiting and self._running is None:
            self._actor = self._actor or _start(*self._made_of)
            batch, self._waiting = self._waiting, []
            self._under_way = {artefact.id: artefact for artefact in batch}
            self._running = self._actor.generate.remote(batch)
        return outcomes

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
