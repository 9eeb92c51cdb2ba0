"""Finetunes on Ray Train: one TorchTrainer per artefact, as many at a time as the cluster holds.

A run is named by the artefact's fingerprint and its scratch lies under the store's hidden ``.work``: a run that was cut
off anywhere (worker, node, driver) goes on at its last checkpoint. Rank 0's commit alone makes a finetune done. Retries
are Ray Train's, within bounds; errors of the input are not retried.
"""

import os
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from kvray.console import track
from kvray.errors import CellError, InputError, KvrayError, first_line
from kvray.finetune.placement import Shape, batch_shape, place
from kvray.finetune.storage import commit, here, job_of, load_rows
from kvray.models.reference import BaseModelRef
from kvray.planning.artefacts import Artefact
from kvray.store.store import Outcome, Store
from kvray.sweep.model import Runtime

PREEMPTIONS = 20
"""Node preemptions that one finetune survives; they do not count as its own failures."""
_SETTINGS = {
    # Seconds between two looks at the workers: Ray's 2 would cost a short finetune one more second at its end.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # A node that an autoscaler starts takes minutes; what can never start is refused before.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "900",
}
_DAMAGED = "CheckpointManagerInitializationError"
_POLL_S = 0.5

Progress = dict[str, tuple[float, float]]
"""Share done and loss by artefact id."""


def finetune(artefacts: Sequence[Artefact], store: Store, base: BaseModelRef, runtime: Runtime) -> list[Outcome]:
    """Make finetunes, whose datasets are committed, and commit them. Ray must be initialised.

    Returns one outcome per artefact, in order; a failed one leaves the others alone. Before anything is started, raises
    ResourceError if the cluster cannot hold one finetune, InputError if the workers cannot share the batch.
    """
    if not artefacts:
        return []
    shape, slots = _place(runtime)
    for artefact in artefacts:
        batch_shape(job_of(artefact).finetune.batch_size, shape.workers, 1)
    runner = _start_runner(min(slots, len(artefacts)), runtime.retries)
    runs = [Run(artefact, store, base, runtime, shape) for artefact in artefacts]
    errors = _run_all(runner, slots, runs)
    return [Outcome(artefact.id, errors[artefact.id]) for artefact in artefacts]


@dataclass(frozen=True)
class Run:
    """One finetune on its way to a worker group."""

    artefact: Artefact
    store: Store
    base: BaseModelRef
    runtime: Runtime
    shape: Shape


class Runner:
    """Runs finetunes and keeps their progress; a Ray actor of no CPU.

    Threads of an interrupted driver would still wait for Ray, and take its process with them; the actor just ends.
    """

    def __init__(self, settings: dict[str, str]) -> None:
        """Set environment variables of Ray Train, which it reads when imported."""
        os.environ.update(settings)
        self._progress: Progress = {}

    def run(self, run: Run) -> str | None:
        """Run one finetune to its end; return what went wrong, or None."""
        import ray

        return _run(run, ray.get_runtime_context().current_actor)

    def note(self, artefact_id: str, share: float, loss: float) -> None:
        self._progress[artefact_id] = (share, loss)

    def progress(self) -> Progress:
        return self._progress


def _place(runtime: Runtime) -> tuple[Shape, int]:
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if len(nodes) == 1:
        # Its actor watches for nodes about to be taken away; a single one has the driver on it.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    # Ray Train's own source for what an autoscaler may add; None where there is no autoscaler.
    most = ray._private.state.state.get_max_resources_from_cluster_config()
    return place(runtime, nodes, most or {})


def _start_runner(at_once: int, retries: int) -> Any:
    """Start a runner on this node: Ray Train pins the controller of a run to the node of whoever starts it."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    this_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    chosen = {name: value for name, value in os.environ.items() if name.startswith("RAY_TRAIN_")}
    options = {"max_restarts": retries, "max_task_retries": retries, "scheduling_strategy": this_node}
    # One more thread than finetunes, for notes and progress.
    actor = ray.remote(Runner).options(num_cpus=0, max_concurrency=at_once + 1, **options)
    return actor.remote({**_SETTINGS, **chosen})


def _run_all(runner: Any, slots: int, runs: Sequence[Run]) -> dict[str, str | None]:
    import ray
    from ray.exceptions import RayError

    waiting = deque(runs)
    running: dict[Any, str] = {}
    errors: dict[str, str | None] = {}
    with track("finetune", len(runs), "finetunes") as advance:
        while waiting or running:
            while waiting and len(running) < slots:
                run = waiting.popleft()
                running[runner.run.remote(run)] = run.artefact.id
            done, _ = ray.wait(list(running), timeout=_POLL_S)
            for reference in done:
                artefact_id = running.pop(reference)
                try:
                    errors[artefact_id] = ray.get(reference)
                except RayError as failure:
                    errors[artefact_id] = _line(failure)
            try:
                progress: Progress = ray.get(runner.progress.remote())
            except RayError:  # the runner is being started again
                progress = {}
            under_way = [progress[each] for each in running.values() if each in progress]
            notes = [f"{100 * share:.0f}% loss {loss:.3f}" for share, loss in under_way]
            # What has not ended never counts as whole: its commit is still to come.
            share_done = sum(min(share, 0.99) for share, _ in under_way)
            advance(min(len(errors) + share_done, len(runs) - 0.01), ", ".join(notes))
        failed = sum(error is not None for error in errors.values())
        advance(len(runs), f"{failed} failed" if failed else "")
    return errors


def _run(run: Run, runner: Any, again: bool = True) -> str | None:
    """Run one finetune to its end; return what went wrong, or None. ``again`` clears torn scratch, once."""
    from ray.exceptions import RayError
    from ray.train.v2.api.exceptions import TrainingFailedError

    work = run.store.path(".work", "finetunes")
    scratch = f"{work}/{run.artefact.fingerprint}"
    try:
        error = _fit(run, runner, work)
    except (TrainingFailedError, RayError) as failure:
        if _DAMAGED in str(failure) and again:
            # Ray Train overwrites its snapshot in place, so a kill can tear it. The run starts afresh.
            _clear(run.store, scratch)
            return _run(run, runner, again=False)
        return _reason(failure)
    if error is None and run.store.manifest(run.artefact.id) is None:
        return "it ended without a commit"
    if error is None:
        _clear(run.store, scratch)
    return error


def _fit(run: Run, runner: Any, work: str) -> str | None:
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    shape, retries = run.shape, run.runtime.retries
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"run": run, "runner": runner},
        scaling_config=ScalingConfig(
            num_workers=shape.workers,
            use_gpu=shape.gpus > 0,
            resources_per_worker={"CPU": shape.cpus} | ({"GPU": shape.gpus} if shape.gpus else {}),
        ),
        run_config=RunConfig(
            name=run.artefact.fingerprint,
            storage_path=work,
            storage_filesystem=run.store.fs,
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            failure_config=FailureConfig(
                max_failures=retries, controller_failure_limit=retries, max_preemption_failures=PREEMPTIONS
            ),
        ),
    )
    error: str | None = trainer.fit().return_value
    return error


def _worker(config: dict[str, Any]) -> str | None:
    """Train on one worker of a finetune; return an error that no retry would mend.

    No worker may return while others wait for it: of several, only errors that all meet alike are returned (those of
    the input, and of the shared loss). Others are raised, which ends the whole group.
    """
    final = KvrayError if config["run"].shape.workers == 1 else (InputError, CellError)
    try:
        _train(**config)
    except final as error:
        return str(error)
    return None


def _train(run: Run, runner: Any) -> None:
    import ray.train

    from kvray.finetune.train import train

    artefact, store, shape = run.artefact, run.store, run.shape
    if store.manifest(artefact.id) is not None:
        return
    job = job_of(artefact)
    base = here(run.base)
    rows, mixture = load_rows(store, job, base)
    first = ray.train.get_context().get_world_rank() == 0
    steps = -(-len(rows) // job.finetune.batch_size) * job.finetune.epochs
    noted = 0.0

    def on_log(row: dict[str, Any]) -> None:
        nonlocal noted
        if time.monotonic() - noted > _POLL_S:
            noted = time.monotonic()
            runner.note.remote(artefact.id, min(1.0, row["step"] / steps), row["loss"])

    def on_checkpoint(path: Path, step: int) -> None:
        # A barrier over all ranks; the files are rank 0's.
        checkpoint = ray.train.Checkpoint.from_directory(path) if first else None
        ray.train.report({"step": step}, checkpoint, checkpoint_dir_name=f"step-{step:08d}")

    latest = ray.train.get_checkpoint()
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kvray-finetune-")))
        trained = train(
            base,
            rows,
            job.finetune,
            job.seed,
            scratch,
            shape=shape,
            runtime=run.runtime,
            resume_from=Path(stack.enter_context(latest.as_directory())) if latest else None,
            on_checkpoint=on_checkpoint,
            on_log=on_log,
        )
        if first:
            measurements = {"workers": shape.workers, **trained.measurements, **mixture.measurements()}
            commit(store, artefact, rows, trained.log, scratch / "model", measurements)


def _clear(store: Store, directory: str) -> None:
    if store.fs.get_file_info(directory).type != pafs.FileType.NotFound:
        store.fs.delete_dir(directory)


def _reason(failure: Exception) -> str:
    """Return in one line why a run failed, from an error that Ray wrapped in traces."""
    from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

    if isinstance(failure, WorkerGroupError) and failure.worker_failures:
        rank, cause = min(failure.worker_failures.items())
        return f"worker {rank}: {_line(cause)}"
    return _line(failure.controller_failure if isinstance(failure, ControllerError) else failure)


def _line(error: BaseException) -> str:
    return str(error) if isinstance(error, KvrayError) else f"{type(error).__name__}: {first_line(error)}"
