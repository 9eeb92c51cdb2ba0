"""The stages that ask models: predictions of the evaluate stage, and writings, which datasets are made of.

Models behind an API are asked from this process; others need an initialised Ray, with one engine per Tune trial.
"""

import contextlib
import functools
from collections.abc import Sequence

from kvray.console import track
from kvray.errors import InputError, KvrayError, StoreError
from kvray.evaluate import trials
from kvray.evaluate.assignments import Assignment, assign_predictions, place, share
from kvray.evaluate.tally import Tally
from kvray.evaluate.worker import Report, Worker
from kvray.models.reference import API, BaseModelRef, resolve
from kvray.planning.artefacts import Artefact, WritingJob
from kvray.store import failures
from kvray.store.store import Outcome, Store
from kvray.sweep.model import Runtime


def evaluate(artefacts: Sequence[Artefact], store: Store, base: BaseModelRef, runtime: Runtime) -> list[Outcome]:
    """Make predictions, whose datasets and finetunes are committed: answer, score, commit.

    Returns one outcome per artefact, in order; a failed one leaves a note in the store (:mod:`kvray.store.failures`).

    Raises:
        ResourceError: no node of the cluster can hold an engine (the message names what is missing), or the API serves
            nothing of this; what was answered stays.
        InputError: the model is behind an API, and there is no key or no such URL.
    """
    _forget(artefacts, store)
    assignments = assign_predictions(artefacts, store, base, runtime)
    return _perform(artefacts, assignments, store, runtime, "evaluate", "rows")


def write(artefacts: Sequence[Artefact], store: Store, base: BaseModelRef, runtime: Runtime) -> list[Outcome]:
    """Make writings: ask each task's prompts of its writer, greedily, and commit the replies.

    ``base`` is the sweep's, whose tokenizer measured the prompts. Returns outcomes as :func:`evaluate` does; an API
    that serves nothing fails the writings of its model alone.

    Raises:
        ResourceError: no node of the cluster can hold an engine.
    """
    _forget(artefacts, store)
    groups: dict[str, list[Artefact]] = {}
    for artefact in artefacts:
        assert isinstance(artefact.params, WritingJob)
        groups.setdefault(artefact.params.writer, []).append(artefact)
    assignments = []
    for name, cells in groups.items():
        try:
            # Its own tokenizer counts nothing here, so that of a writer behind an API need not be looked for.
            writer = resolve(name, (base.tokenizer or base).name if name.startswith(API) else None)
        except InputError as error:
            for cell in cells:
                failures.note(store, cell.id, str(error))
        else:
            assignments.append(Assignment(writer, tuple(cells), runtime, counted_by=base))
    return _perform(artefacts, assignments, store, runtime, "write", "prompts")


def outcome(
    artefact: Artefact, store: Store, assignments: Sequence[Assignment], crashes: Sequence[str | None]
) -> Outcome:
    """Return how an artefact ended, by its manifest, its worker's note, or what ended an assignment early."""
    try:
        if store.manifest(artefact.id) is not None:
            failures.delete(store, artefact.id)
            return Outcome(artefact.id, None)
    except KvrayError as error:
        return Outcome(artefact.id, str(error))
    noted = failures.read(store, artefact.id)
    if noted is not None:
        return Outcome(artefact.id, noted)
    ended = (
        crash
        for assignment, crash in zip(assignments, crashes, strict=True)
        if crash and any(cell.id == artefact.id for cell in assignment.cells)
    )
    why = next(ended, "its engine ended without an error and without all of its predictions; run again")
    with contextlib.suppress(StoreError):  # whoever takes the outcome notes it too, and says if that fails
        failures.note(store, artefact.id, why)
    return Outcome(artefact.id, why)


def _forget(artefacts: Sequence[Artefact], store: Store) -> None:
    for artefact in artefacts:
        failures.delete(store, artefact.id)


def _perform(
    artefacts: Sequence[Artefact],
    assignments: Sequence[Assignment],
    store: Store,
    runtime: Runtime,
    label: str,
    unit: str,
) -> list[Outcome]:
    """Do assignments, those of models behind an API first; return one outcome per artefact."""
    if not assignments:
        return [outcome(artefact, store, (), ()) for artefact in artefacts]
    api = [each for each in assignments if each.base.api]
    local = [each for each in assignments if not each.base.api]
    cpus, gpus, at_once = place(runtime, trials.nodes()) if local else (0.0, 0.0, 0)
    parts = share(local, cpus, gpus, at_once)
    with track(label, sum(artefact.rows for artefact in artefacts), unit) as advance:
        waiting = "an engine starts" if parts else "the API is asked"
        tally = Tally(advance, [each.rows for each in (*parts, *api)], unit, waiting)
        asked = [
            _ask(each, store, tally, number, others_go_on=label == "write")
            for number, each in enumerate(api, start=len(parts))
        ]
        crashes = (
            trials.fit(parts, _answer, store, runtime, {"cpu": cpus, "gpu": gpus}, at_once, tally) if parts else []
        )
    return [outcome(artefact, store, (*parts, *api), (*crashes, *asked)) for artefact in artefacts]


def _answer(assignment: Assignment, store: Store, report: Report) -> None:
    Worker(assignment, store, report).run()


def _ask(assignment: Assignment, store: Store, tally: Tally, number: int, others_go_on: bool) -> str | None:
    """Do the assignment of a model behind an API; return what ended it early if others go on after that."""
    try:
        Worker(assignment, store, functools.partial(tally.report, number), by_row=True).run()
    except KvrayError as error:
        if not others_go_on:
            raise
        return str(error)
    return None
