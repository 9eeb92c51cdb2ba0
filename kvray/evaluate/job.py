"""The stages that ask models: predictions of the evaluate stage, and writings, which datasets are made of.

Models behind an API are asked from this process. Others need an initialised Ray: assignments are Ray Tune trials, each
of which holds one engine. Tune places engines and restarts dead ones (within ``runtime.retries``). What is left to do
is what has no chunk in the store, so ``Tuner.restore`` is not used.
"""

import functools
import logging
import os
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kvray.console import track
from kvray.errors import InputError, KvrayError
from kvray.evaluate.assignments import Assignment, assign_predictions, place, share
from kvray.evaluate.worker import Report, Tally, Worker
from kvray.models.reference import API, BaseModelRef, resolve
from kvray.planning.artefacts import Artefact, WritingJob
from kvray.store import failures
from kvray.store.store import Outcome, Store
from kvray.sweep.model import Runtime

Work = Callable[[Assignment, Store, Report], None]
WAIT_NOTED_S = 15.0
"""Seconds without a running engine until the progress line says what is waited for."""
_MOST_NODES = 1024
_RAISED = re.compile(r"[A-Za-z_][\w.]*(Error|Exception|Exit|Interrupt|Died|Compiler): ")
"""Matches the line of a trace that names the exception."""


def evaluate(artefacts: Sequence[Artefact], store: Store, base: BaseModelRef, runtime: Runtime) -> list[Outcome]:
    """Make predictions, whose datasets and finetunes are committed: answer, score, commit.

    Returns one outcome per artefact, in order; a failed one leaves a note in the store (:mod:`kvray.store.failures`).
    Raises ResourceError if no node of the cluster can hold an engine (the message names what is missing), or the API
    serves nothing of this; what was answered stays. Raises InputError if an API has no key or no such URL.
    """
    assignments = assign_predictions(artefacts, store, base, runtime)
    return _perform(artefacts, assignments, store, runtime, "evaluate")


def write(artefacts: Sequence[Artefact], store: Store, base: BaseModelRef, runtime: Runtime) -> list[Outcome]:
    """Make writings: ask each task's prompts of its writer, greedily, and commit the replies.

    ``base`` is the sweep's, whose tokenizer measured the prompts. Outcomes and errors are as for :func:`evaluate`, but
    an API that serves nothing fails the writings of its model alone.
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
    return _perform(artefacts, assignments, store, runtime, "write")


def _perform(
    artefacts: Sequence[Artefact], assignments: Sequence[Assignment], store: Store, runtime: Runtime, label: str
) -> list[Outcome]:
    if not assignments:
        return [_outcome(artefact, store, None) for artefact in artefacts]
    api = [each for each in assignments if each.base.api]
    local = [each for each in assignments if not each.base.api]
    cpus, gpus, at_once = place(runtime, nodes()) if local else (0.0, 0.0, 0)
    parts = share(local, cpus, gpus, at_once)
    unit = "rows" if label == "evaluate" else "prompts"
    crashes: dict[str, str] = {}  # by the ids of the cells whose assignment ended early
    with track(label, sum(artefact.rows for artefact in artefacts), unit) as advance:
        waiting = "an engine starts" if parts else "the API is asked"
        tally = Tally(advance, [each.rows for each in (*parts, *api)], unit, waiting)
        for number, each in enumerate(api, start=len(parts)):
            try:
                Worker(each, store, functools.partial(tally.report, number)).run()
            except KvrayError as error:
                if label == "evaluate":  # one model is behind all cells, while each writing has its own
                    raise
                crashes |= {cell.id: str(error) for cell in each.cells}
        if parts:
            crashes |= fit(parts, _answer, store, at_once, tally)
    return [_outcome(artefact, store, crashes.get(artefact.id)) for artefact in artefacts]


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


def _answer(assignment: Assignment, store: Store, report: Report) -> None:
    Worker(assignment, store, report).run()


def fit(assignments: Sequence[Assignment], work: Work, store: Store, at_once: int, tally: Tally) -> dict[str, str]:
    """Run one trial of ``work`` per assignment, ``at_once`` at a time, each with the CPUs and GPUs that it says.

    Returns what ended an assignment for good, by its cells' ids; ``tally`` takes reports by assignments' numbers.
    """
    # Tune reads these: no CSV, JSON and TensorBoard files per trial, no tables beside our own progress line.
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    # Tune would take Ctrl-C for itself and return what there is so far, as if the rest had failed.
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    from ray import tune

    # Its traces, and its notices on files that it may not write: the outcome says what failed.
    logging.getLogger("ray.tune").setLevel(logging.ERROR if os.environ.get("KVRAY_VERBOSE") else logging.CRITICAL)
    first = assignments[0]  # all take the same resources
    per_trial = {"cpu": first.cpus, "gpu": first.gpus}

    def name(trial: Any) -> str:
        return f"evaluate-{trial.config['assignment']:04d}"

    trainable = tune.with_parameters(_trial, assignments=assignments, work=work, store=store)
    with tempfile.TemporaryDirectory(prefix="kvray-tune-") as scratch:
        tuner = tune.Tuner(
            tune.with_resources(trainable, per_trial),
            param_space={"assignment": tune.grid_search(list(range(len(assignments))))},
            tune_config=tune.TuneConfig(
                max_concurrent_trials=at_once, trial_name_creator=name, trial_dirname_creator=name
            ),
            run_config=tune.RunConfig(
                name="evaluate",
                storage_path=scratch,
                verbose=0,
                progress_reporter=tune.CLIReporter(),  # silent; the one for notebooks clears what the cell has shown
                failure_config=tune.FailureConfig(max_failures=first.runtime.retries),
                callbacks=[_progress(tally, per_trial)],
            ),
        )
        crashes: dict[str, str] = {}
        for result in tuner.fit():
            crash = _cause(result.error) if result.error is not None else (result.metrics or {}).get("error")
            if crash and result.config is not None:
                crashes |= {cell.id: crash for cell in assignments[result.config["assignment"]].cells}
    return crashes


def nodes() -> list[Mapping[str, float]]:
    """Return the resources of every live node, and of every one that the autoscaler may add."""
    import ray
    from ray._private.state import state

    alive: list[Mapping[str, float]] = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    config = state.get_cluster_config()
    groups = config.node_group_configs if config is not None else ()
    return alive + [dict(group.resources) for group in groups for _ in range(min(group.max_count, _MOST_NODES))]


def _trial(config: dict[str, Any], assignments: Sequence[Assignment], work: Work, store: Store) -> None:
    from ray import tune

    last = {"rows": 0, "of": 0}

    def report(done: int, total: int, note: str = "") -> None:
        last.update(rows=done, of=total)
        tune.report(dict(last))

    try:
        work(assignments[config["assignment"]], store, report)
    except KvrayError as error:
        # Trying again would end the same way: it is the answer for every cell that this engine owes. The driver notes
        # it, since the store may be what failed.
        tune.report({**last, "error": str(error)})


def _progress(tally: Tally, per_trial: Mapping[str, float]) -> Any:
    from ray import tune

    class Progress(tune.Callback):  # type: ignore[misc]  # ray is untyped here
        """Hands on what trials report; shows when none can start. Tune stores it, so it may hold no progress bar."""

        def __init__(self, tally: Tally, per_trial: Mapping[str, float]) -> None:
            self._tally = tally
            self._wanted = ", ".join(f"{name.upper()} {amount:g}" for name, amount in per_trial.items() if amount)
            self._reported = False
            self._running_at = time.monotonic()

        def __getstate__(self) -> dict[str, Any]:
            return {}  # how far the work is can be seen in the store; it is no state

        def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: Any, **info: Any) -> None:
            self._reported = True
            self._tally.report(trial.config["assignment"], int(result["rows"]), int(result["of"]))

        def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
            now = time.monotonic()
            if any(trial.status == "RUNNING" for trial in trials):
                self._running_at = now
                if not self._reported:
                    self._tally.show(self._tally.waiting)
            elif now - self._running_at > WAIT_NOTED_S:
                self._tally.show(f"waiting for {self._wanted}")

    return Progress(tally, per_trial)


def _cause(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # Libraries write advice below the error itself, so the last line is not always what happened.
    raised = [line for line in lines if _RAISED.match(line)]
    last = next(iter([*raised[-1:], *lines[-1:]]), type(error).__name__)
    return f"the engine died, retries included: {last}; KVRAY_VERBOSE=1 shows the trace"
