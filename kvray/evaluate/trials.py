"""Assignments as Ray Tune trials, each of which holds one engine.

Tune places engines and restarts dead ones (within ``runtime.retries``). What is left to do is what has no chunk in the
store, so ``Tuner.restore`` is not used.
"""

import contextlib
import logging
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from kvray.errors import KvrayError
from kvray.evaluate.assignments import Assignment
from kvray.evaluate.tally import Tally
from kvray.evaluate.worker import Report
from kvray.store.store import Store
from kvray.sweep.model import Runtime

Work = Callable[[Assignment, Store, Report], None]
WAIT_NOTED_S = 15.0
"""Seconds without a running engine until the progress line says what is waited for."""
_MOST_NODES = 1024
_RAISED = re.compile(r"[A-Za-z_][\w.]*(Error|Exception|Exit|Interrupt|Died|Compiler): ")
"""Matches the line of a trace that names the exception."""


def fit(
    assignments: Sequence[Assignment],
    work: Work,
    store: Store,
    runtime: Runtime,
    per_trial: Mapping[str, float],
    at_once: int,
    tally: Tally,
) -> dict[str, str]:
    """Run one trial of ``work`` per assignment, ``at_once`` at a time, each with the resources ``per_trial``.

    Returns what stopped or killed an assignment for good, by the ids of its cells. ``tally`` takes what the trials
    report, by the numbers of the assignments.
    """
    # Tune reads these: no CSV, JSON and TensorBoard files per trial, no tables beside our own progress line.
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    # Tune would take Ctrl-C for itself and return what there is so far, as if the rest had failed.
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    from ray import tune

    def name(trial: Any) -> str:
        return f"evaluate-{trial.config['assignment']:04d}"

    trainable = tune.with_parameters(_trial, assignments=assignments, work=work, store=store)
    with tempfile.TemporaryDirectory(prefix="kvray-tune-") as scratch, _quiet("ray.tune"):
        tuner = tune.Tuner(
            tune.with_resources(trainable, dict(per_trial)),
            param_space={"assignment": tune.grid_search(list(range(len(assignments))))},
            tune_config=tune.TuneConfig(
                max_concurrent_trials=at_once, trial_name_creator=name, trial_dirname_creator=name
            ),
            run_config=tune.RunConfig(
                name="evaluate",
                storage_path=scratch,
                verbose=0,
                progress_reporter=tune.CLIReporter(),  # silent; the one for notebooks clears what the cell has shown
                failure_config=tune.FailureConfig(max_failures=runtime.retries),
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


@contextlib.contextmanager
def _quiet(logger: str) -> Iterator[None]:
    """Hold back Tune's traces and its notices on files that it may not write: the outcome says what failed."""
    named = logging.getLogger(logger)
    level = named.level
    named.setLevel(logging.ERROR if os.environ.get("KVRAY_VERBOSE") else logging.CRITICAL)
    try:
        yield
    finally:
        named.setLevel(level)


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
        """Hands on what the trials report; shows when no trial can start.

        Tune writes down its callbacks' classes too, so this one may capture no progress bar: its locks cannot be
        written.
        """

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
