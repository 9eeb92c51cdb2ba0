"""The evaluate stage on Ray: every Tune trial holds one vLLM engine and answers its part of the cells.

Tune places the engines, limits how many run and starts a dead one again (within ``runtime.retries``). It keeps no
state that matters: what is left to do is what has no chunk in the store, so ``Tuner.restore`` is not used.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from kvray.console import Advance, track
from kvray.errors import InputError, KvrayError, StoreError
from kvray.evaluate.orders import Order, is_full, job_of
from kvray.evaluate.placement import place
from kvray.models.reference import BaseModelRef
from kvray.planning.artefacts import Artefact, read_document
from kvray.store import failures
from kvray.store.store import Outcome, Store
from kvray.sweep.model import Runtime

_MOST_NODES = 1024
_RAISED = re.compile(r"[A-Za-z_][\w.]*(Error|Exception|Exit|Interrupt|Died|Compiler): ")
"""The line of a trace that names the exception."""
WAIT_NOTED_S = 15.0
"""After this long without a running engine, the progress line says what is waited for."""


class Cells(Protocol):
    """An order as a trial sees it: the artefacts that its engine is to make."""

    @property
    def cells(self) -> Sequence[Artefact]:
        """The artefacts."""


Work = Callable[[Any, Store, Callable[[int], None]], None]


def evaluate(artefacts: Sequence[Artefact], store: Store, base: BaseModelRef, runtime: Runtime) -> list[Outcome]:
    """Make predictions artefacts: answer, score, commit. Ray must be initialised.

    Args:
        artefacts: predictions whose dataset and finetune are committed.
        store: where everything is.
        base: the base model.
        runtime: where and how.

    Returns:
        One outcome per artefact, in order; a failed one leaves ``failures/<id>.json`` in the store.

    Raises:
        ResourceError: no node of the cluster can hold an engine; the message names what is missing.
    """
    if not artefacts:
        return []
    for artefact in artefacts:
        failures.delete(store, artefact.id)
    cpus, gpus, at_once = place(runtime, nodes())
    orders = plan_orders(artefacts, store, base, runtime, cpus, gpus, at_once)
    crashes: list[str | None] = []
    if orders:
        rows = sum(artefact.rows for artefact in artefacts)
        with track("evaluate", rows, "rows") as advance:
            crashes = fit(orders, _answer, store, runtime, {"cpu": cpus, "gpu": gpus}, at_once, advance)
    return [outcome(artefact, store, orders, crashes) for artefact in artefacts]


def plan_orders(
    artefacts: Sequence[Artefact],
    store: Store,
    base: BaseModelRef,
    runtime: Runtime,
    cpus: float,
    gpus: float,
    at_once: int,
) -> list[Order]:
    """Deal the cells to engines: the base and all its adapters together, each full finetune in engines of its own.

    Benchmarks of lm-evaluation-harness have engines of their own: their prompts are of other lengths, and a benchmark
    that cannot be loaded holds up no other evaluation. A cell whose finetune is not committed is noted as failed. With
    fewer groups than engines at a time, a group is shared by several engines.
    """
    groups: dict[tuple[str | None, bool], list[Artefact]] = {}
    for artefact in artefacts:
        finetune = job_of(artefact).finetune_id
        try:
            full = finetune if finetune is not None and is_full(store, finetune) else None
        except KvrayError as error:
            failures.note(store, artefact.id, str(error))
            continue
        groups.setdefault((full, not job_of(artefact).task.BRINGS_EXAMPLES), []).append(artefact)
    sweeps = sweeps_of(store, {artefact.id for artefact in artefacts})
    parts = math.ceil(at_once / len(groups)) if groups else 1
    return [
        # By adapter, so that an engine changes adapters as rarely as it can; the base comes first.
        Order(
            base=base,
            full=full,
            benchmarks=benchmarks,
            cells=tuple(sorted(cells, key=lambda cell: job_of(cell).finetune_id or "")),
            sweeps=sweeps,
            part=part,
            parts=parts,
            runtime=runtime,
            gpus=gpus,
            cpus=cpus,
        )
        for (full, benchmarks), cells in groups.items()
        for part in range(parts)
    ]


def fit(
    orders: Sequence[Cells],
    work: Work,
    store: Store,
    runtime: Runtime,
    per_trial: dict[str, float],
    at_once: int,
    advance: Advance,
) -> list[str | None]:
    """Run one trial per order; return, per order, what it could not go on for or what killed it for good, or None.

    Args:
        orders: what each trial does.
        work: does an order in the trial's process; told the store and a function that takes the rows done so far.
        store: where everything is.
        runtime: where and how.
        per_trial: resources of one trial.
        at_once: trials at a time.
        advance: moves the progress line.
    """
    # Tune reads these: no CSV, JSON and TensorBoard files per trial, no tables beside our own progress line.
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    # Tune would take Ctrl-C for itself and return what there is so far, as if the rest had failed.
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    from ray import tune

    with tempfile.TemporaryDirectory(prefix="kvray-tune-") as scratch, _quiet("ray.tune"):
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(_trial, orders=orders, work=work, store=store), per_trial),
            param_space={"order": tune.grid_search(list(range(len(orders))))},
            tune_config=tune.TuneConfig(
                max_concurrent_trials=at_once,
                trial_name_creator=lambda trial: f"evaluate-{trial.config['order']:04d}",
                trial_dirname_creator=lambda trial: f"evaluate-{trial.config['order']:04d}",
            ),
            run_config=tune.RunConfig(
                name="evaluate",
                storage_path=scratch,
                verbose=0,
                progress_reporter=tune.CLIReporter(),  # silent; the one for notebooks clears what the cell has shown
                failure_config=tune.FailureConfig(max_failures=runtime.retries),
                callbacks=[_progress(advance, per_trial)],
            ),
        )
        results = tuner.fit()
        crashes: list[str | None] = [None] * len(orders)
        for result in results:
            if result.config is not None:
                told = (result.metrics or {}).get("error")
                crashes[result.config["order"]] = told if result.error is None else _cause(result.error)
    return crashes


@contextlib.contextmanager
def _quiet(logger: str) -> Iterator[None]:
    """Hold back what Tune tells of files that we do not let it write, and its traces: the outcome says what failed."""
    named = logging.getLogger(logger)
    level = named.level
    named.setLevel(logging.ERROR if os.environ.get("KVRAY_VERBOSE") else logging.CRITICAL)
    try:
        yield
    finally:
        named.setLevel(level)


def _answer(order: Any, store: Store, report: Callable[[int], None]) -> None:
    """Do an :class:`Order` in this process."""
    if order.benchmarks:
        from kvray.evaluate.lm_eval.worker import run_cells

        run_cells(order, store, report)
        return
    from kvray.evaluate.worker import Worker

    Worker(order, store, report).run()


def _trial(config: dict[str, Any], orders: Sequence[Cells], work: Work, store: Store) -> None:
    """One Tune trial: one engine."""
    from ray import tune

    order = orders[config["order"]]
    done = 0

    def report(rows: int) -> None:
        nonlocal done
        done = rows
        tune.report({"rows": rows})

    try:
        work(order, store, report)
    except KvrayError as error:
        # Trying again would end the same way: it is the answer for every cell that this engine owes. The driver notes
        # it, since the store may be what failed.
        tune.report({"rows": done, "error": str(error)})


def _progress(advance: Advance, per_trial: Mapping[str, float]) -> Any:
    """Return the Tune callback that drives the progress line."""
    from ray import tune

    class Progress(tune.Callback):  # type: ignore[misc]  # ray is untyped here
        """Sums the rows that the trials report; says so when no trial can start.

        Tune writes its callbacks down, class and all. So nothing here may be captured from around the class: a
        progress bar holds locks, which cannot be written.
        """

        def __init__(self, advance: Advance, per_trial: Mapping[str, float]) -> None:
            self._advance = advance
            self._wanted = ", ".join(f"{name.upper()} {amount:g}" for name, amount in per_trial.items() if amount)
            self._rows: dict[str, int] = {}
            self._started = self._seen = time.monotonic()

        def __getstate__(self) -> dict[str, Any]:
            return {}  # how far the work is can be seen in the store; it is no state

        def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: Any, **info: Any) -> None:
            self._rows[trial.trial_id] = int(result["rows"])
            done, elapsed = sum(self._rows.values()), time.monotonic() - self._started
            self._advance(done, f"{done / elapsed:.1f} rows/s" if done else "an engine starts")

        def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
            now = time.monotonic()
            if any(trial.status == "RUNNING" for trial in trials):
                self._seen = now
                if not self._rows:
                    self._advance(0, "an engine starts")
            elif now - self._seen > WAIT_NOTED_S:
                self._advance(sum(self._rows.values()), f"waiting for {self._wanted}")

    return Progress(advance, per_trial)


def outcome(artefact: Artefact, store: Store, orders: Sequence[Cells], crashes: Sequence[str | None]) -> Outcome:
    """Return how an artefact ended: by its manifest, by what a trial noted, or by what killed the trial."""
    try:
        if store.manifest(artefact.id) is not None:
            failures.delete(store, artefact.id)
            return Outcome(artefact.id, None)
    except KvrayError as error:
        return Outcome(artefact.id, str(error))
    noted = failures.read(store, artefact.id)
    if noted is not None:
        return Outcome(artefact.id, noted)
    crashed = next(
        (
            crash
            for order, crash in zip(orders, crashes, strict=True)
            if crash and any(cell.id == artefact.id for cell in order.cells)
        ),
        "its engine ended without an error and without all of its predictions; run again",
    )
    with contextlib.suppress(StoreError):  # whoever takes the outcome notes it too, and says if that fails
        failures.note(store, artefact.id, crashed)
    return Outcome(artefact.id, crashed)


def _cause(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # Libraries write advice below the error itself, so the last line is not always what happened.
    raised = [line for line in lines if _RAISED.match(line)]
    told = next(iter([*raised[-1:], *lines[-1:]]), type(error).__name__)
    return f"the engine died, retries included: {told}; KVRAY_VERBOSE=1 shows the trace"


def nodes() -> list[Mapping[str, float]]:
    """Return the resources of every node there is, and of every kind that the autoscaler may add."""
    import ray
    from ray._private.state import state

    alive: list[Mapping[str, float]] = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    config = state.get_cluster_config()
    groups = config.node_group_configs if config is not None else ()
    return alive + [dict(group.resources) for group in groups for _ in range(min(group.max_count, _MOST_NODES))]


def sweeps_of(store: Store, ids: set[str]) -> dict[str, str]:
    """Return, per artefact, the first sweep of the store that plans it: a label, which readers rewrite."""
    found: dict[str, str] = {}
    for name in store.documents("sweeps/"):
        data = store.read_document(name)
        try:
            planned = read_document(data or b"").artefacts
        except InputError:
            continue  # another program's document; labels are no reason to stop
        for artefact in planned:
            if artefact.id in ids:
                found.setdefault(artefact.id, name.removeprefix("sweeps/").removesuffix(".json"))
    return found
