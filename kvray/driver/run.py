"""Makes the artefacts of a plan that the store lacks or holds damaged.

The driver has no state of its own: the work left is the plan minus the store. So the same command continues a killed
run, and a sweep that grew runs only its new cells.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kvray.console import duration, say
from kvray.driver.connection import Connection, asked_for, connect
from kvray.driver.generation import Generation
from kvray.driver.make import Making
from kvray.driver.seats.cluster import Cluster
from kvray.driver.seats.lanes import open_lanes
from kvray.driver.sharing import Sharing, gpus
from kvray.driver.spending import Spending
from kvray.errors import InputError, RunInterrupted, StoreError, installed, need
from kvray.models.openai import address
from kvray.models.reference import BaseModelRef
from kvray.planning import benchmarks
from kvray.planning.artefacts import (
    KINDS,
    STAGE_NAMES,
    Artefact,
    FinetuneJob,
    Plan,
    PredictionsJob,
    asks_api,
    keep,
)
from kvray.planning.cost import budget, space
from kvray.planning.cost.estimate import estimate
from kvray.planning.inputs import gather
from kvray.planning.plan import plan
from kvray.report.trackers.send import Sending
from kvray.store import failures
from kvray.store.leases import Leases
from kvray.store.manifest import Presence
from kvray.store.store import Outcome, Store
from kvray.sweep.document import from_values
from kvray.sweep.grid import variants
from kvray.sweep.load import read
from kvray.sweep.model import Runtime, Sweep


def prepare(
    sweep: Sweep | str | os.PathLike[str],
    overrides: Sequence[str] = (),
    base_model: str | None = None,
    scale: str | None = None,
    offline: bool = False,
    allow_code: bool = False,
) -> tuple[Plan, BaseModelRef]:
    """Plan a sweep, given in Python or by its file. Writes nothing.

    ``offline`` is as in :func:`kvray.planning.inputs.gather`, the rest, for files, as in :func:`kvray.sweep.load.read`.

    Raises InputError with every problem of the file, its sources and its base model.
    """
    if isinstance(sweep, Sweep):
        document, expanded = from_values(sweep.written()), variants(sweep)
    else:
        sweep, document, expanded = read(os.fspath(sweep), overrides, scale, base_model, allow_code)
    try:
        inputs = gather(sweep, offline, expanded)
        return plan(sweep, inputs), inputs.base
    except InputError as error:
        raise InputError(document.report(error.found)) from error


def run(planned: Plan, base: BaseModelRef, store: Store, verify: bool = False) -> Result:
    """Make what the store lacks of a plan, from :func:`prepare`; ``verify`` checks the sha256 of what it has, too.

    What the sweep has is sent to ``runtime.trackers`` as it is committed, and at the end, whole or not.

    Raises:
        InputError: the store cannot be written, a needed API has no key or no valid URL, or packages are missing that
            the run, a benchmark or a tracker needs; nothing was written.
        StoreError: the store became unwritable during the run.
        ResourceError: the cluster lacks resources that the sweep asks for, a disk most of the space, or the API serves
            none of its models.
        RunInterrupted: Ctrl-C. Finished artefacts stay, none is noted as failed, and the same call continues.
    """
    _need_packages(planned, base, store, verify)
    store.check(write=True)
    with Sending(store, planned.sweep.name, planned.sweep.runtime.trackers) as sending:
        return _make(planned, base, store, verify, sending.committed)


def _make(planned: Plan, base: BaseModelRef, store: Store, verify: bool, committed: Callable[[str], None]) -> Result:
    started = time.monotonic()
    leases = Leases(store, planned.sweep.name, gpus(planned.sweep.runtime))  # before the store is listed
    listing = store.listing([artefact.id for artefact in planned.artefacts], verify)
    todo = [artefact for artefact in planned.artefacts if listing[artefact.id].state != "committed"]
    if any(asks_api(artefact, base) for artefact in todo):
        address(planned.sweep.runtime.api_base_url)
    if planned.sweep.runtime.engine != Runtime().engine:
        from kvray.evaluate.engines.base import engine_class

        engine_class(base, planned.sweep.runtime)  # raises for a wrong name before anything is made
    if asked_for(planned.sweep.runtime) is None:  # the workers of another Ray have packages of their own
        asked = {str(each.labels.get("evaluation")): each.params for each in todo}
        cells = {name: job.task for name, job in asked.items() if isinstance(job, PredictionsJob)}
        if lacking := list(benchmarks.problems(cells)):
            raise InputError(lacking)
    document = keep(planned, store)
    if not todo:
        return Result(planned.sweep, store, len(planned.artefacts), found=(document, listing))
    result = Result(planned.sweep, store, len(planned.artefacts) - len(todo))
    runtime = planned.sweep.runtime
    spending = Spending(store, planned.sweep.name, leases.me.run, runtime)
    if spending.reached:
        result.left = [artefact.id for artefact in todo]
        result.stopped = _stopped(planned, store, spending, result.left)
        return result
    noted = failures.noted(store)
    for artefact in todo:
        if artefact.id in noted:
            failures.delete(store, artefact.id)
    estimated = estimate(planned, store)
    for warning in space.check(estimated.space, store, runtime, here=asked_for(runtime) is None):
        say(f"kvray: warning: {warning}")
    seconds = {item.artefact.id: item.seconds or 0.0 for item in estimated.items}
    account = _Account(planned, store, result, todo, committed)
    try:
        # Leases last until the seats of a local Ray have ended with it.
        with leases, spending, connect(runtime) as connection:
            cluster = Cluster(connection.local)
            lanes = open_lanes(todo, store, base, runtime, cluster)
            account.say_start()
            sharing = Sharing(store, leases, listing)
            generation = Generation(store, base, runtime)
            making = Making(todo, sharing, seconds, lanes, generation, runtime, cluster, store, spending)
            making.run(account.end, wait=not connection.ends)
    except KeyboardInterrupt:
        raise RunInterrupted(account.kept()) from None
    result.seconds = time.monotonic() - started
    if result.left:
        result.stopped = _stopped(planned, store, spending, result.left)
    return result


def _stopped(planned: Plan, store: Store, spending: Spending, left: Sequence[str]) -> str:
    """Say what a run that reached its budget has spent, and what it left would take, by what is measured by now."""
    runtime, to_come = planned.sweep.runtime, budget.needed(estimate(planned, store).document["stages"])
    return budget.stopped(runtime, spending.total, len(left), to_come)


def _need_packages(planned: Plan, base: BaseModelRef, store: Store, verify: bool) -> None:
    """Raise an InputError if packages beside the light install are missing here that the rest of a plan takes.

    The workers of another Ray have packages of their own, so for one that is joined Ray itself is enough here.
    """
    if all(map(installed, _packages(planned.artefacts, base, planned.sweep.runtime))):
        return
    listing = store.listing([artefact.id for artefact in planned.artefacts], verify)
    todo = [artefact for artefact in planned.artefacts if listing[artefact.id].state != "committed"]
    if todo:
        need("kvray run", *_packages(todo, base, planned.sweep.runtime))


def _packages(todo: Sequence[Artefact], base: BaseModelRef, runtime: Runtime) -> list[str]:
    packages, local = ["ray"], asked_for(runtime) is None
    for artefact in todo:
        if asks_api(artefact, base):
            packages.append("openai")
        elif local and isinstance(artefact.params, FinetuneJob):
            packages += ["torch", "transformers", "peft", "accelerate"]
        elif local and isinstance(artefact.params, PredictionsJob):
            packages += ["transformers", *(["vllm"] if runtime.engine == Runtime().engine else [])]
    return list(dict.fromkeys(packages))


def check_names(planned: Sequence[tuple[str, Plan]]) -> None:
    """Raise an InputError if different sweeps of a run, each (file, plan), share a name: only one report would stay."""
    first: dict[str, tuple[str, Plan]] = {}
    for file, plan_ in planned:
        # The store's file system may not tell upper from lower case.
        other, known = first.setdefault(plan_.sweep.name.lower(), (file, plan_))
        if [artefact.id for artefact in known.artefacts] != [artefact.id for artefact in plan_.artefacts]:
            raise InputError(f"{file}: name: found {plan_.sweep.name!r}, as in {other}; expected a name of its own")


def shared_cluster(runtimes: Sequence[Runtime]) -> contextlib.AbstractContextManager[Connection | None]:
    """Hold one Ray for several sweeps in a row, if all of them ask for the same one."""
    asked = {(runtime.address, runtime.num_cpus, runtime.object_store_memory) for runtime in runtimes}
    return connect(runtimes[0]) if len(runtimes) > 1 and len(asked) == 1 else contextlib.nullcontext()


def open_store(store: Store | str | os.PathLike[str] | None) -> Store:
    """Return the given store, else that of ``$KVRAY_STORE``, else ``./store``."""
    return store if isinstance(store, Store) else Store(store or os.environ.get("KVRAY_STORE") or "store")


@dataclass(repr=False)
class Result:
    """What :func:`run` did."""

    sweep: Sweep
    store: Store
    cached: int = 0  # artefacts that the store had before
    made: list[str] = field(default_factory=list)  # ids of the artefacts that the run committed
    elsewhere: list[str] = field(default_factory=list)  # ids of those that other runs committed meanwhile
    failed: dict[str, str] = field(default_factory=dict)  # reason by id; running again tries these again
    left: list[str] = field(default_factory=list)  # ids of those that were not begun, as the budget is spent
    stopped: str = ""  # what is spent then, what the rest takes, and what to type
    seconds: float = 0.0  # wall-clock time of the run
    # The plan's document and the store's listing, where there was nothing to do: still true.
    found: tuple[Mapping[str, Any], Mapping[str, Presence]] | None = None

    @property
    def nothing_to_do(self) -> bool:
        return not self.made and not self.elsewhere and not self.failed and not self.left

    @property
    def exit_status(self) -> int:
        """What ``kvray run`` ends with: 3 if the budget left artefacts unmade, else 1 if some failed, else 0."""
        return 3 if self.left else 1 if self.failed else 0

    def outcome(self) -> str:
        elsewhere = f"{len(self.elsewhere)} made by another run, " if self.elsewhere else ""
        planned = len(self.made) + len(self.elsewhere) + self.cached + len(self.failed) + len(self.left)
        there = f"{len(self.made)} made, {elsewhere}{self.cached} were there"
        if self.left:
            failed = f", {len(self.failed)} failed" if self.failed else ""
            head = f"{len(self.left)} of {planned} artefacts of {self.sweep.name} are left: {there}{failed}"
            return f"{head}\n{self.stopped}" if self.stopped else head
        if self.failed:
            return (
                f"{len(self.failed)} of {planned} artefacts of {self.sweep.name} failed, {there}; "
                "running again tries them again"
            )
        if self.nothing_to_do:
            return f"nothing to do: all {self.cached} artefacts of {self.sweep.name} are committed in {self.store.uri}"
        return f"{there}, {duration(self.seconds)}"

    def failures(self) -> list[tuple[str, str]]:
        """Return id and reason, on one line, of what failed."""
        return [(artefact_id, " ".join(why.split())[:200]) for artefact_id, why in self.failed.items()]


class _Account:
    """Keeps the result of a run as its artefacts end, notes failures in the store, and says when a stage is done."""

    def __init__(
        self,
        planned: Plan,
        store: Store,
        result: Result,
        todo: Sequence[Artefact],
        committed: Callable[[str], None],
    ) -> None:
        self._planned, self._store, self._result, self._committed = planned, store, result, committed
        self._kinds = {artefact.id: artefact.kind for artefact in todo}
        self._open = Counter(self._kinds.values())
        self._made: Counter[str] = Counter()
        self._totals = dict(self._open)
        self._started: float | None = None

    def say_start(self) -> None:
        """Say what is to be made."""
        self._started = time.monotonic()
        amounts = [f"{self._open[kind]} in {STAGE_NAMES[kind]}" for kind in KINDS if self._open[kind]]
        say(f"kvray: to make: {', '.join(amounts)}")

    def end(self, outcome: Outcome) -> None:
        """Take how an artefact ended; StoreError if it failed and the store takes not even a note of that."""
        kind = self._kinds[outcome.artefact_id]
        self._open[kind] -= 1
        if outcome.left:
            self._result.left.append(outcome.artefact_id)
        elif outcome.error is None:
            self._made[kind] += 1
            (self._result.elsewhere if outcome.elsewhere else self._result.made).append(outcome.artefact_id)
            self._committed(outcome.artefact_id)
        else:
            self._fail(outcome.artefact_id, outcome.error)
        if not self._open[kind]:
            took = f"{time.monotonic() - (self._started or 0.0):.0f} s after the start"
            say(f"kvray: {STAGE_NAMES[kind]}: {self._made[kind]} of {self._totals[kind]} made, {took}")

    def kept(self) -> str:
        """Say what an interrupted run keeps."""
        with self._store.hurry():
            try:
                states = self._store.states([artefact.id for artefact in self._planned.artefacts])
            except StoreError as error:
                return (
                    f"interrupted; what was made is kept in {self._store.uri}, which cannot be looked at now: {error}"
                )
        committed = sum(state == "committed" for state in states.values())
        under_way = ", and of what was under way the shards, checkpoints and answers so far" if self._started else ""
        return f"interrupted; kept in {self._store.uri}: {committed} of {len(states)} artefacts{under_way}"

    def _fail(self, artefact_id: str, error: str) -> None:
        self._result.failed[artefact_id] = error
        try:
            failures.note(self._store, artefact_id, error)
        except StoreError as unwritable:
            # A store that takes no note takes no artefact either: the later stages would end the same way.
            first, why = next(iter(self._result.failed.items()))
            raise StoreError(f"{first}: {why}; the store takes not even a note of that ({unwritable})") from unwritable
