"""Finetunes on Ray Train: one TorchTrainer per artefact, as many at a time as the cluster holds.

A run's name is the artefact's fingerprint and its scratch lies under the store's hidden ``.work``, so that a run that
was cut off anywhere (a worker, a node, the driver itself) is found again and goes on at its last checkpoint. Whether a
finetune is done is decided by its commit alone: rank 0 makes it, and a run that finds it made trains nothing.
Retries are Ray Train's, within bounds; errors of the input are not retried.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from kvray.console import track
from kvray.errors import CellError, InputError, KvrayError, first_line
from kvray.finetune.placement import Shape, place
from kvray.finetune.train import batch_shape
from kvray.models.reference import BaseModelRef
from kvray.planning.artefacts import Artefact, FinetuneJob
from kvray.store.store import Outcome, Store
from kvray.sweep.model import Runtime

PREEMPTIONS = 20
"""Node preemptions that one finetune survives; they are no failures of its own."""
_SETTINGS = {
    # Seconds between two looks at the workers: Ray's 2 would cost a short finetune one more second at its end.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # A node that an autoscaler starts takes minutes; what can never start is refused before.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "900",
}
_DAMAGED = "CheckpointManagerInitializationError"
_POLL_S = 0.5


def finetune(artefacts: Sequence[Artefact], store: Store, base: BaseModelRef, runtime: Runtime) -> list[Outcome]:
    """Make finetunes and commit them. Ray must be initialised.

    Args:
        artefacts: finetunes to make; their datasets are committed.
        store: where datasets are and adapters go.
        base: the base model.
        runtime: where and how fast.

    Returns:
        One outcome per artefact, in order; a failed one leaves the others alone.

    Raises:
        ResourceError: the cluster cannot hold one finetune; nothing was started.
        InputError: the workers cannot share the batch; nothing was started.
    """
    if not artefacts:
        return []
    shape, slots = _place(runtime)
    for artefact in artefacts:
        batch_shape(_params(artefact).finetune.batch_size, shape.workers, runtime.per_device_batch_size)
    runner = _runner(min(slots, len(artefacts)), runtime.retries)
    errors = _watch(runner, slots, artefacts, (store, base, runtime, shape))
    return [Outcome(artefact.id, errors[artefact.id]) for artefact in artefacts]


def _place(runtime: Runtime) -> tuple[Shape, int]:
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if len(nodes) == 1:
        # Its actor watches for nodes about to be taken away; a single one has the driver on it.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    # Ray Train's own source for what an autoscaler may add; None where there is no autoscaler.
    most = ray._private.state.state.get_max_resources_from_cluster_config()
    return place(runtime, nodes, most or {})


def _params(artefact: Artefact) -> FinetuneJob:
    if not isinstance(artefact.params, FinetuneJob):
        raise TypeError(f"{artefact.id} is no finetune: its params are {type(artefact.params).__name__}")
    return artefact.params


class Runner:
    """Runs finetunes, and keeps how far each is; a Ray actor of no CPU.

    An actor and not threads of the driver: an interrupted driver has nothing to wait for then, and whatever it ran
    ends with it. A thread that still waits for Ray when Ray is shut down takes the driver's process with it.
    """

    def __init__(self, settings: dict[str, str]) -> None:
        """Take settings of Ray Train, environment variables that must be there before it is imported."""
        os.environ.update(settings)
        self._steps: dict[str, tuple[float, float]] = {}

    def run(self, artefact: Artefact, store: Store, base: BaseModelRef, runtime: Runtime, shape: Shape) -> str | None:
        """Run one finetune to its end; return None or what went wrong."""
        import ray

        return _run(artefact, store, base, runtime, shape, ray.get_runtime_context().current_actor)

    def tell(self, artefact_id: str, share: float, loss: float) -> None:
        """Note that ``share`` of a finetune is done."""
        self._steps[artefact_id] = (share, loss)

    def read(self) -> dict[str, tuple[float, float]]:
        """Return (share done, loss) by artefact id."""
        return self._steps


def _runner(at_once: int, retries: int) -> Any:
    """Start a runner on this node: Ray Train pins the controller of a run to the node of whoever starts it."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    chosen = {name: value for name, value in os.environ.items() if name.startswith("RAY_TRAIN_")}
    actor = ray.remote(num_cpus=0, max_restarts=retries, max_task_retries=retries, scheduling_strategy=here)(Runner)
    # One more thread than finetunes, for those who tell and read.
    return actor.options(max_concurrency=at_once + 1).remote({**_SETTINGS, **chosen})


def _watch(
    runner: Any, slots: int, artefacts: Sequence[Artefact], where: tuple[Store, BaseModelRef, Runtime, Shape]
) -> dict[str, str | None]:
    """Run finetunes, ``slots`` at a time, and show how far they are; return what went wrong by artefact id."""
    import ray
    from ray.exceptions import RayError

    waiting = deque(artefacts)
    running: dict[Any, Artefact] = {}
    errors: dict[str, str | None] = {}
    with track("finetune", len(artefacts), "finetunes") as advance:
        while waiting or running:
            while waiting and len(running) < slots:
                artefact = waiting.popleft()
                running[runner.run.remote(artefact, *where)] = artefact
            done, _ = ray.wait(list(running), timeout=_POLL_S)
            for reference in done:
                artefact = running.pop(reference)
                try:
                    errors[artefact.id] = ray.get(reference)
                except RayError as failure:
                    errors[artefact.id] = _line(failure)
            told = _told(runner)
            under_way = {each.id: told[each.id] for each in running.values() if each.id in told}
            notes = [f"{100 * share:.0f}% loss {loss:.3f}" for share, loss in under_way.values()]
            # What has not ended never counts as whole: its commit is still to come.
            share_done = sum(min(share, 0.99) for share, _ in under_way.values())
            advance(min(len(errors) + share_done, len(artefacts) - 0.01), ", ".join(notes))
        failed = sum(error is not None for error in errors.values())
        advance(len(artefacts), f"{failed} failed" if failed else "")
    return errors


def _told(runner: Any) -> dict[str, tuple[float, float]]:
    """Return how far the finetunes are; nothing while the runner is being started again."""
    import ray
    from ray.exceptions import RayError

    try:
        told: dict[str, tuple[float, float]] = ray.get(runner.read.remote())
    except RayError:
        return {}
    return told


def _run(
    artefact: Artefact, store: Store, base: BaseModelRef, runtime: Runtime, shape: Shape, runner: Any
) -> str | None:
    """Run one finetune to its end; return None or what went wrong."""
    from ray.exceptions import RayError
    from ray.train.v2.api.exceptions import TrainingFailedError

    work = store.path(".work", "finetunes")
    for attempt in range(2):
        try:
            error = _fit(artefact, store, base, runtime, shape, runner, work)
        except (TrainingFailedError, RayError) as failure:
            if _DAMAGED in str(failure) and attempt == 0:
                # Ray Train overwrites its snapshot in place, so a kill can tear it. The run starts afresh.
                _clear(store, f"{work}/{artefact.fingerprint}")
                continue
            error = _reason(failure)
        if error is None and store.manifest(artefact.id) is None:
            error = "it ended without a commit"
        if error is None:
            _clear(store, f"{work}/{artefact.fingerprint}")
        return error
    return f"its checkpoints under {work} are damaged and could not be cleared"


def _fit(
    artefact: Artefact, store: Store, base: BaseModelRef, runtime: Runtime, shape: Shape, runner: Any, work: str
) -> str | None:
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    trainer = TorchTrainer(
        _worker,
        train_loop_config={"artefact": artefact, "store": store, "base": base, "runtime": runtime, "shape": shape}
        | {"runner": runner},
        scaling_config=ScalingConfig(
            num_workers=shape.workers,
            use_gpu=shape.gpus > 0,
            resources_per_worker={"CPU": shape.cpus} | ({"GPU": shape.gpus} if shape.gpus else {}),
        ),
        run_config=RunConfig(
            name=artefact.fingerprint,
            storage_path=work,
            storage_filesystem=store.fs,
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            failure_config=FailureConfig(
                max_failures=runtime.retries,
                controller_failure_limit=runtime.retries,
                max_preemption_failures=PREEMPTIONS,
            ),
        ),
    )
    error: str | None = trainer.fit().return_value
    return error


def _worker(config: dict[str, Any]) -> str | None:
    """Train on one worker of a finetune; returns an error that no retry would mend.

    A worker that returns early must not leave others waiting for it: of several, only errors that all meet alike are
    returned (those of the input, and of the loss, which all share); the rest is raised, which ends the whole group.
    """
    final = KvrayError if config["shape"].workers == 1 else (InputError, CellError)
    try:
        _train(**config)
    except final as error:
        return str(error)
    return None


def _train(artefact: Artefact, store: Store, base: BaseModelRef, runtime: Runtime, shape: Shape, runner: Any) -> None:
    import ray.train

    from kvray.finetune.callbacks import LossRow
    from kvray.finetune.storage import commit, here, load_rows
    from kvray.finetune.train import Execution, train

    if store.manifest(artefact.id) is not None:
        return
    job = _params(artefact)
    base = here(base)
    rows, mixture = load_rows(store, job, base)
    first = ray.train.get_context().get_world_rank() == 0
    steps = -(-len(rows) // job.finetune.batch_size) * job.finetune.epochs
    told = 0.0

    def on_log(row: LossRow) -> None:
        nonlocal told
        if time.monotonic() - told > _POLL_S:
            told = time.monotonic()
            runner.tell.remote(artefact.id, min(1.0, row["step"] / steps), row["loss"])

    def on_checkpoint(path: Path, step: int) -> None:
        # A barrier over all ranks; the files are rank 0's.
        checkpoint = ray.train.Checkpoint.from_directory(path) if first else None
        ray.train.report({"step": step}, checkpoint, checkpoint_dir_name=f"step-{step:08d}")

    execution = Execution(
        workers=shape.workers,
        gpu=shape.gpus > 0,
        per_device_batch_size=runtime.per_device_batch_size,
        gradient_checkpointing=runtime.gradient_checkpointing,
        checkpoint_every_steps=runtime.checkpoint_every_steps,
        strategy=runtime.strategy,
        threads=max(1, int(shape.cpus)),
    )
    latest = ray.train.get_checkpoint()
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kvray-finetune-")))
        done = train(
            base,
            rows,
            job.finetune,
            job.seed,
            scratch,
            execution=execution,
            resume_from=Path(stack.enter_context(latest.as_directory())) if latest else None,
            on_checkpoint=on_checkpoint,
            on_log=on_log,
        )
        if first:
            strategy = "fsdp" if done.sharded else "ddp"
            facts = {"workers": shape.workers, "strategy": strategy, **mixture.facts()}
            commit(store, artefact, rows, done, scratch / "model", facts)


def _clear(store: Store, directory: str) -> None:
    if store.fs.get_file_info(directory).type != pafs.FileType.NotFound:
        store.fs.delete_dir(directory)


def _reason(failure: Exception) -> str:
    """Return why a run failed, in one line, of an error that Ray wrapped in traces."""
    from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

    if isinstance(failure, WorkerGroupError) and failure.worker_failures:
        rank, cause = min(failure.worker_failures.items())
        return f"worker {rank}: {_line(cause)}"
    return _line(failure.controller_failure if isinstance(failure, ControllerError) else failure)


def _line(error: BaseException) -> str:
    if isinstance(error, KvrayError):
        return str(error)
    return f"{type(error).__name__}: {first_line(error)}"
