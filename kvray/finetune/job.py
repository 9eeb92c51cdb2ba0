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
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from kvray.artefact import Artefact, FinetuneJob
from kvray.base_model import BaseModelRef
from kvray.errors import CellError, InputError, KvrayError
from kvray.finetune.placement import Shape, place
from kvray.finetune.train import batch_shape
from kvray.progress import track
from kvray.spec import Runtime
from kvray.store import Outcome, Store

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
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    board = _board()
    waiting = deque(artefacts)
    errors: dict[str, str | None] = {}

    def work() -> None:
        while True:
            try:
                artefact = waiting.popleft()
            except IndexError:
                return
            errors[artefact.id] = _run(artefact, store, base, runtime, shape, board)

    # Daemons, so that an interrupted driver is not held by runs that it no longer waits for.
    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(slots, len(artefacts)))]
    for thread in threads:
        thread.start()
    _show(threads, artefacts, errors, board)
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


class Board:
    """Where workers tell how far they are; a Ray actor of no CPU."""

    def __init__(self) -> None:
        self._steps: dict[str, tuple[float, float]] = {}

    def tell(self, artefact_id: str, share: float, loss: float) -> None:
        """Note that ``share`` of a finetune is done."""
        self._steps[artefact_id] = (share, loss)

    def read(self) -> dict[str, tuple[float, float]]:
        """Return (share done, loss) by artefact id."""
        return self._steps


def _board() -> Any:
    import ray

    return ray.remote(num_cpus=0)(Board).remote()


def _show(
    threads: Sequence[threading.Thread], artefacts: Sequence[Artefact], errors: dict[str, str | None], board: Any
) -> None:
    import ray

    with track("finetune", len(artefacts), "finetunes") as advance:
        while any(thread.is_alive() for thread in threads):
            time.sleep(_POLL_S)
            told = ray.get(board.read.remote())
            running = {one: value for one, value in told.items() if one not in errors}
            notes = [f"{100 * share:.0f}% loss {loss:.3f}" for share, loss in running.values()]
            # What has not ended never counts as whole: its commit is still to come.
            under_way = sum(min(share, 0.99) for share, _ in running.values())
            advance(min(len(errors) + under_way, len(artefacts) - 0.01), ", ".join(notes))
        failed = sum(error is not None for error in errors.values())
        advance(len(artefacts), f"{failed} failed" if failed else "")


def _run(
    artefact: Artefact, store: Store, base: BaseModelRef, runtime: Runtime, shape: Shape, board: Any
) -> str | None:
    """Run one finetune to its end; return None or what went wrong."""
    from ray.exceptions import RayError
    from ray.train.v2.api.exceptions import TrainingFailedError

    work = store.path(".work", "finetunes")
    for attempt in range(2):
        try:
            error = _fit(artefact, store, base, runtime, shape, board, work)
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
    artefact: Artefact, store: Store, base: BaseModelRef, runtime: Runtime, shape: Shape, board: Any, work: str
) -> str | None:
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    trainer = TorchTrainer(
        _worker,
        train_loop_config={"artefact": artefact, "store": store, "base": base, "runtime": runtime, "shape": shape}
        | {"board": board},
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


def _train(artefact: Artefact, store: Store, base: BaseModelRef, runtime: Runtime, shape: Shape, board: Any) -> None:
    import ray.train

    from kvray.finetune.storage import commit, here, load_rows
    from kvray.finetune.train import Execution, train
    from kvray.finetune.watch import LossRow

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
            board.tell.remote(artefact.id, min(1.0, row["step"] / steps), row["loss"])

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
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first}"
