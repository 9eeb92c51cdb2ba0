"""The stages that ask models: predictions of the evaluate stage, and writings, which datasets are made of.

Models behind an API are asked from this process; others need an initialised Ray, with one engine per Tune trial.
"""

import functools
from collections.abc import Sequence

from kvray.console import track
from kvray.errors import InputError, KvrayError
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
    assignments = assign_predictions(artefacts, store, base, runtime)
    return _perform(artefacts, assignments, store, runtime, "evaluate", "rows")


def write(artefacts: Sequence[Artefact], store: Store, base: BaseModelRef, runtime: Runtime) -> list[Outcome]:
    """Make writings: ask each task's prompts of its writer, greedily, and commit the replies.

    ``base`` is the sweep's, whose tokenizer measured the prompts. Returns outcomes as :func:`evaluate` does; an API
    that serves nothing fails the writings of its model alone.

    Raises:
        ResourceError: no node of the cluster can hold an engine.
    """
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
        return [_outcome(artefact, store, None) for artefact in artefacts]
    api = [each for each in assignments if each.base.api]
    local = [each for each in assignments if not each.base.api]
    cpus, gpus, at_once = place(runtime, trials.nodes()) if local else (0.0, 0.0, 0)
    parts = share(local, cpus, gpus, at_once)
    crashes: dict[str, str] = {}  # by the ids of the cells whose assignment ended early
    with track(label, sum(artefact.rows for artefact in artefacts), unit) as advance:
        waiting = "an engine starts" if parts else "the API is asked"
        tally = Tally(advance, [each.rows for each in (*parts, *api)], unit, waiting)
        for number, each in enumerate(api, start=len(parts)):
            try:
                Worker(each, store, functools.partial(tally.report, number), by_row=True).run()
            except KvrayError as error:
                if label == "evaluate":  # one model is behind all cells, while each writing has its own
                    raise
                crashes |= {cell.id: str(error) for cell in each.cells}
        if parts:
            crashes |= trials.fit(parts, _answer, store, runtime, {"cpu": cpus, "gpu": gpus}, at_once, tally)
    return [_outcome(artefact, store, crashes.get(artefact.id)) for artefact in artefacts]


def _answer(assignment: Assignment, store: Store, report: Report) -> None:
    Worker(assignment, store, report).run()


def _outcome(artefact: Artefact, store: Store, crash: str | None) -> Outcome:
    """Return how an artefact ended, by its manifest, its worker's note, or what ended its assignment early."""
    try:
        if store.manifest(artefact.id) is not None:
            failures.delete(store, artefact.id)
            return Outcome(artefact.id, None)
    except KvrayError as error:
        return Outcome(artefact.id, str(error))
    silent = "its engine ended without an error and without all of its predictions; run again"
    return Outcome(artefact.id, failures.read(store, artefact.id) or crash or silent)
