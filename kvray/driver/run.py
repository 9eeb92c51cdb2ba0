"""Makes the artefacts of a plan that the store lacks or holds damaged, stage by stage.

The driver has no state of its own: the work left is the plan minus the store. So the same command continues a killed
run, and a sweep that grew runs only its new cells.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from kvray.console import duration, say
from kvray.driver.connection import asked_for, connect
from kvray.errors import InputError, KvrayError, ResourceError, RunInterrupted, StoreError
from kvray.models.openai import address
from kvray.models.reference import API, BaseModelRef
from kvray.planning import benchmarks
from kvray.planning.artefacts import KINDS, STAGE_NAMES, Artefact, Plan, PredictionsJob, WritingJob, keep
from kvray.planning.inputs import gather
from kvray.planning.plan import plan
from kvray.store import failures
from kvray.store.manifest import Presence
from kvray.store.store import Outcome, Store
from kvray.sweep.document import from_values
from kvray.sweep.grid import variants
from kvray.sweep.load import read
from kvray.sweep.model import Runtime, Sweep

Stage = Callable[[Sequence[Artefact], Store, BaseModelRef, Runtime], list[Outcome]]
PARTS_KEPT = {  # what an interrupted run keeps of unfinished artefacts, by stage
    "write": "the replies so far",
    "generate": "the shards so far",
    "finetune": "the last checkpoint of what was training",
    "evaluate": "the answers so far",
}


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

    Raises:
        InputError: the store cannot be written, a needed API has no key or no valid URL, or packages are missing that a
            benchmark needs; nothing was written.
        StoreError: the store became unwritable during the run.
        ResourceError: the cluster lacks resources that the sweep asks for, or the API serves none of its models.
        RunInterrupted: Ctrl-C. Finished artefacts stay, none is noted as failed, and the same call continues.
    """
    started = time.monotonic()
    store.check(write=True)
    listing = store.listing([artefact.id for artefact in planned.artefacts], verify)
    todo = [artefact for artefact in planned.artefacts if listing[artefact.id].state != "committed"]
    if any(_asks_api(artefact, base) for artefact in todo):
        address(planned.sweep.runtime.api_base_url)
    if planned.sweep.runtime.engine != Runtime().engine:
        from kvray.evaluate.engines.base import engine_class

        engine_class(base, planned.sweep.runtime)  # raises for a wrong name before anything is made
    if asked_for(planned.sweep.runtime) is None:  # the workers of another Ray have packages of their own
        asked = {str(each.labels.get("evaluation")): each.params for each in todo}
        cells = {name: job.task for name, job in asked.items() if isinstance(job, PredictionsJob)}
        if lacking := list(benchmarks.problems(cells)):
            raise InputError(lacking)
    keep(planned, store)
    if not todo:
        return Result(planned.sweep, store, len(planned.artefacts), listing=listing)
    result = Result(planned.sweep, store, len(planned.artefacts) - len(todo))
    noted = failures.noted(store)
    for artefact in todo:
        if listing[artefact.id].state == "damaged":
            say(f"kvray: {artefact.id} is damaged and will be made again: {'; '.join(store.problems(artefact.id))}")
            store.discard(artefact.id)
        if artefact.id in noted:
            failures.delete(store, artefact.id)
    stage = "starting Ray"
    try:
        with connect(planned.sweep.runtime):
            for kind in KINDS:
                stage = STAGE_NAMES[kind]
                _stage(kind, [artefact for artefact in todo if artefact.kind == kind], planned, base, store, result)
    except KeyboardInterrupt:
        raise RunInterrupted(_kept(planned, store, stage)) from None
    result.seconds = time.monotonic() - started
    return result


def check_names(planned: Sequence[tuple[str, Plan]]) -> None:
    """Raise an InputError if different sweeps of a run, each (file, plan), share a name: only one report would stay."""
    first: dict[str, tuple[str, Plan]] = {}
    for file, plan_ in planned:
        # The store's file system may not tell upper from lower case.
        other, known = first.setdefault(plan_.sweep.name.lower(), (file, plan_))
        if [artefact.id for artefact in known.artefacts] != [artefact.id for artefact in plan_.artefacts]:
            raise InputError(f"{file}: name: found {plan_.sweep.name!r}, as in {other}; expected a name of its own")


def shared_cluster(runtimes: Sequence[Runtime]) -> contextlib.AbstractContextManager[None]:
    """Hold one Ray for several sweeps in a row, if all of them ask for the same one."""
    asked = {(runtime.address, runtime.num_cpus, runtime.object_store_memory) for runtime in runtimes}
    return connect(runtimes[0]) if len(runtimes) > 1 and len(asked) == 1 else contextlib.nullcontext()


def _stage(kind: str, todo: list[Artefact], planned: Plan, base: BaseModelRef, store: Store, result: Result) -> None:
    ready = []
    for artefact in todo:
        lost = [need for need in artefact.needs if need in result.failed]
        if lost:
            _fail(artefact.id, f"needs {lost[0]}, which failed", store, result)
        else:
            ready.append(artefact)
    if not ready:
        return
    started = time.monotonic()
    name = STAGE_NAMES[kind]
    say(f"kvray: {name}: {len(ready)} to make")
    # A stage that ends without a word on an artefact has not made it.
    errors: dict[str, str | None] = {each.id: f"{name} ended without saying what became of it" for each in ready}
    try:
        outcomes = _stage_function(kind, base.api)(ready, store, base, planned.sweep.runtime)
        errors |= {outcome.artefact_id: outcome.error for outcome in outcomes}
    except ResourceError:
        raise
    except KvrayError as error:
        errors = dict.fromkeys(errors, str(error))
    for artefact_id, why in errors.items():
        if why is None:
            result.made.append(artefact_id)
        else:
            _fail(artefact_id, why, store, result)
    good = sum(why is None for why in errors.values())
    say(f"kvray: {name}: {good} of {len(todo)} made, {time.monotonic() - started:.0f} s")


def _kept(planned: Plan, store: Store, stage: str) -> str:
    states = store.states([artefact.id for artefact in planned.artefacts])
    committed = sum(state == "committed" for state in states.values())
    parts = f" and {PARTS_KEPT[stage]}" if stage in PARTS_KEPT else ""
    return f"interrupted in {stage}; kept in {store.uri}: {committed} of {len(planned.artefacts)} artefacts{parts}"


def _stage_function(kind: str, api: bool) -> Stage:
    from kvray.evaluate.job import evaluate, write
    from kvray.finetune import job, openai
    from kvray.generate.job import generate

    finetune = openai.finetune if api else job.finetune
    return {"writing": write, "dataset": generate, "finetune": finetune, "predictions": evaluate}[kind]


def _asks_api(artefact: Artefact, base: BaseModelRef) -> bool:
    if isinstance(artefact.params, WritingJob):
        return artefact.params.writer.startswith(API)
    return base.api and artefact.kind != "dataset"


def _fail(artefact_id: str, error: str, store: Store, result: Result) -> None:
    result.failed[artefact_id] = error
    try:
        failures.note(store, artefact_id, error)
    except StoreError as unwritable:
        # A store that takes no note takes no artefact either: the later stages would end the same way.
        first, why = next(iter(result.failed.items()))
        raise StoreError(
            f"{first}: {why}; the store takes not even a note of that: make room, then type the same command"
        ) from unwritable


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
    failed: dict[str, str] = field(default_factory=dict)  # reason by id; running again tries these again
    seconds: float = 0.0  # wall-clock time of the run
    listing: Mapping[str, Presence] | None = None  # of the store, where there was nothing to do: still true

    @property
    def nothing_to_do(self) -> bool:
        return not self.made and not self.failed

    def outcome(self) -> str:
        if self.failed:
            planned = len(self.made) + self.cached + len(self.failed)
            return (
                f"{len(self.failed)} of {planned} artefacts of {self.sweep.name} failed, {len(self.made)} made, "
                f"{self.cached} were there; running again tries them again"
            )
        if self.nothing_to_do:
            return f"nothing to do: all {self.cached} artefacts of {self.sweep.name} are committed in {self.store.uri}"
        return f"{len(self.made)} made, {self.cached} were there, {duration(self.seconds)}"

    def failures(self) -> list[tuple[str, str]]:
        """Return id and reason, on one line, of what failed."""
        return [(artefact_id, " ".join(why.split())[:200]) for artefact_id, why in self.failed.items()]
