"""Finetunes on Ray Train: a slot, one worker group that takes one finetune after the other with the base model loaded.

The group is a Ray Train run inside a Tune trial, so that controllers spread over the cluster. Rank 0 takes units and
tells how they ended; its commit alone makes a finetune done. When a worker dies, Ray Train starts the group again, and
the unit goes back to the queue, which alone bounds its attempts. Whoever takes it next, in this run or another, goes on
at the finetune's last checkpoint.
"""

import os
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvray.console import say
from kvray.errors import (
    CellError,
    DamagedArtefactError,
    InputError,
    KvrayError,
    RecipeMismatchError,
    StoreError,
    first_line,
    passes,
)
from kvray.finetune.placement import Shape
from kvray.finetune.storage import Checkpoints, commit, here, job_of, load_rows
from kvray.models.exhaustion import exhaustion
from kvray.models.reference import BaseModelRef
from kvray.planning.artefacts import Artefact
from kvray.planning.work import Nothing, Seat, Source, Unit
from kvray.store.places.scratch import scratch_directory
from kvray.store.store import Store
from kvray.sweep.model import Runtime

if TYPE_CHECKING:
    from kvray.finetune.model import Resident

_FOREVER = str(30 * 24 * 3600)
_SETTINGS = {
    # Seconds between two looks at the workers: Ray's 2 would cost a slot one more second at its end.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # Devices may be busy, or come from an autoscaler, for days: waiting is no failure.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": _FOREVER,
    # A worker that hangs is ended by whoever gave the slot its source.
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": _FOREVER,
    # Workers wait for rank 0 while it waits for work.
    "RAY_TRAIN_COLLECTIVE_WARN_INTERVAL_S": "3600",
}
_FINAL = (InputError, CellError, DamagedArtefactError, RecipeMismatchError)
"""Errors of a finetune itself, which all of its workers meet alike."""
_POLL_S = 0.5
"""Seconds between two reports of steps."""
_BEAT_S = 5.0
"""Seconds without a step after which a pass of some of its rows is told instead."""


@dataclass(frozen=True)
class Slot:
    """What the workers of a slot are given; ``began`` is when it did, in seconds since the epoch."""

    source: Source
    seat: Seat
    store: Store
    base: BaseModelRef
    runtime: Runtime
    finetunes: Mapping[str, Artefact]
    began: float

    @property
    def shape(self) -> Shape:
        """The workers, each with the CPU threads that it computes with."""
        return Shape(self.seat.workers, float(self.seat.threads), self.seat.gpus)


@dataclass(frozen=True)
class Order:
    """What rank 0 tells the others to train: a unit, and the step of the checkpoint to go on at, None for the start."""

    unit: Unit
    step: int | None


def slot(
    source: Source,
    seat: Seat,
    *,
    store: Store,
    base: BaseModelRef,
    runtime: Runtime,
    finetunes: Mapping[str, Artefact],
    alone: bool = False,
) -> None:
    """Train finetunes from ``source``, one after the other, until it ends: the work of a seat.

    Ray must be initialised. ``finetunes`` are all that may come, by id, their datasets committed when they do. The
    workers' devices are not those of the calling process; until they are free the call waits. ``alone`` tells that this
    Ray is one node for good, of which no part can be taken away.

    Raises RuntimeError, with the reason, if workers could not be started, or if their deaths ended the slot: how often
    they may die is for the source to say.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.v2.api.exceptions import TrainingFailedError

    # Ray Train watches for nodes about to be taken away by an actor of its own.
    watcher = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"} if alone else {}
    for name, value in (_SETTINGS | watcher).items():
        os.environ.setdefault(name, value)
    # Ray Train wants a place that all nodes see; kvray keeps nothing there.
    name, place = f"{seat.name}-{uuid.uuid4().hex[:8]}", store.path(".work", "slots")
    given = Slot(source, seat, store, base, runtime, finetunes, time.time())
    trainer = _trainer(seat)(
        _worker,
        train_loop_config={"slot": given},
        scaling_config=ScalingConfig(
            num_workers=seat.workers,
            use_gpu=seat.gpus > 0,
            resources_per_worker={"CPU": seat.cpus} | ({"GPU": seat.gpus} if seat.gpus else {}),
        ),
        run_config=RunConfig(
            name=name,
            storage_path=place,
            storage_filesystem=store.fs,
            callbacks=[_teller(source)],
            # The source bounds deaths; a start that failed, of which Ray Train does not tell, ends the slot.
            failure_config=FailureConfig(max_failures=-1, max_preemption_failures=-1, controller_failure_limit=0),
            worker_runtime_env={"env_vars": {"HF_HOME": runtime.model_cache}} if runtime.model_cache else None,
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as failure:
        raise RuntimeError(_reason(failure)) from None
    finally:
        store.folder(f".work/slots/{name}").clear()


def _trainer(seat: Seat) -> Any:
    """Return the trainer for a slot: one worker alone needs no process group, and its controller then no torch.

    Importing torch takes seconds, in this process and in the controller's, one after the other. With several GPUs a
    worker without a process group would compute on all of them by torch's DataParallel.
    """
    if seat.workers == 1 and seat.gpus <= 1:
        from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

        return DataParallelTrainer
    from ray.train.torch import TorchTrainer

    return TorchTrainer


def _teller(source: Source) -> Any:
    """Return what tells the source, from Ray Train's controller, that workers died, and why."""
    from ray.train import UserCallback

    class Teller(UserCallback):  # type: ignore[misc]  # ray is untyped here
        """Knows what rank 0 can no longer say."""

        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            from ray.exceptions import RayActorError

            causes = [getattr(error, "health_check_failure", error) for error in worker_exceptions.values()]
            preempted = any(isinstance(each, RayActorError) and each.preempted for each in causes)
            why = _of_a_worker(worker_exceptions)
            if not source.died(why, preempted):
                raise RuntimeError(why)  # which ends the slot

    return Teller()


def _worker(config: dict[str, Any]) -> None:
    """Train what rank 0 takes, on one worker of a slot, until there is no more."""
    import ray.train
    from ray.train.collective import broadcast_from_rank_zero

    from kvray.finetune.model import Resident

    given: Slot = config["slot"]
    rank = ray.train.get_context().get_world_rank()
    given.source.join(f"worker {rank}")
    first = rank == 0
    resident = Resident(given.base, given.shape, given.runtime)
    with suppress(InputError):  # which each finetune will meet, and say
        here(given.base)
        if any(job_of(each).finetune.method != "full" for each in given.finetunes.values()):
            resident.load()
    if first:
        given.source.started(time.time() - given.began)
    while True:
        order: Order | None = broadcast_from_rank_zero(_next(given) if first else None)
        if order is None:
            return
        error = _train(given, order, resident, first)
        if first and error is not None:
            given.source.failed(order.unit, error)
        elif first:
            given.source.committed(order.unit)


def _next(given: Slot) -> Order | None:
    """Return the next finetune to train; None if the slot is to end."""
    while (unit := given.source.take()) is not Nothing.END:
        if isinstance(unit, Nothing):
            continue
        artefact = given.finetunes[unit.artefact_id]
        checkpoints = Checkpoints(given.store, artefact)
        if given.store.manifest(artefact.id) is None:
            return Order(unit, checkpoints.last())
        checkpoints.clear()  # whoever committed it died before it could say so
        given.source.committed(unit)
    return None


def _train(given: Slot, order: Order, resident: "Resident", first: bool) -> str | None:
    """Train a finetune, and commit it on rank 0; return an error that no further attempt would mend.

    No worker may go on while others wait for it inside a finetune, so what one alone may meet beforehand all are told.
    Other errors are raised, which ends the whole group.
    """
    from kvray.finetune.train import train

    artefact, store = given.finetunes[order.unit.artefact_id], given.store
    job, checkpoints = job_of(artefact), Checkpoints(store, artefact)
    found, error = None, None
    try:
        found = load_rows(store, job, here(given.base))
    except KvrayError as failure:
        if passes(failure):
            raise
        error = str(failure)
    error = _first_of_all(error, given.seat.workers)
    if found is None or error is not None:
        return error
    rows, mixture = found
    steps = -(-len(rows) // job.finetune.batch_size) * job.finetune.epochs
    noted = 0.0

    def on_pass() -> None:
        nonlocal noted
        if time.monotonic() - noted > _BEAT_S:
            noted = time.monotonic()
            given.source.beat()

    def on_log(row: dict[str, Any]) -> None:
        nonlocal noted
        if time.monotonic() - noted > _POLL_S:
            noted = time.monotonic()
            # What is not committed never counts as whole.
            given.source.progress(order.unit, min(0.99, row["step"] / steps), f"loss {row['loss']:.3f}")

    def on_checkpoint(file: Path, step: int) -> None:
        try:
            checkpoints.put(file, step)
            given.source.saved(order.unit, step)
        except StoreError as failure:  # the store may take the next one
            say(f"kvray: {artefact.id}: the checkpoint of step {step} was not stored: {failure}")

    with scratch_directory(given.runtime.scratch, "finetune") as place:
        scratch = Path(place)
        try:
            trained = train(
                given.base,
                rows,
                job.finetune,
                job.seed,
                scratch,
                shape=given.shape,
                runtime=given.runtime,
                resident=resident,
                resume_from=checkpoints.get(order.step, scratch) if order.step is not None else None,
                on_checkpoint=on_checkpoint,
                on_log=on_log,
                on_pass=on_pass if first else None,
            )
        except _FINAL as failure:
            return str(failure)
        except RuntimeError as failure:
            _tell_exhausted(given.source, order.unit, failure)
            raise
        if first:
            measurements = {"workers": given.seat.workers, **trained.measurements, **mixture.measurements()}
            try:
                commit(store, artefact, rows, trained.log, scratch / "model", measurements)
                checkpoints.clear()
            except KvrayError as failure:
                if passes(failure):
                    raise
                return str(failure)
    return None


def _tell_exhausted(source: Source, unit: Unit, failure: RuntimeError) -> None:
    """Tell that a unit does not fit a GPU, if that is what a worker, maybe alone, has met.

    Its process is full of what did not fit, so the error is to be raised all the same.
    """
    found = exhaustion(str(failure), finetune=True)
    if found and found.final:
        source.failed(unit, f"{found.sentence} ({first_line(failure)})")


def _first_of_all(error: str | None, workers: int) -> str | None:
    """Return the error that the lowest rank met, on every worker; None if none did. A barrier."""
    if workers == 1:
        return error
    from torch import distributed

    errors: list[str | None] = [None] * workers
    distributed.all_gather_object(errors, error)
    return next((each for each in errors if each is not None), None)


def _reason(failure: Exception) -> str:
    """Return in one line why a run failed, from an error that Ray wrapped in traces."""
    from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

    if isinstance(failure, WorkerGroupError) and failure.worker_failures:
        return _of_a_worker(failure.worker_failures)
    return _line(failure.controller_failure if isinstance(failure, ControllerError) else failure)


def _of_a_worker(failures: Mapping[int, Exception]) -> str:
    rank, cause = min(failures.items())
    return f"worker {rank}: {_line(cause)}"


def _line(error: BaseException) -> str:
    if isinstance(error, KvrayError):
        return str(error)
    error = getattr(error, "health_check_failure", error)  # of a process that died, in Ray Train's wrapping
    found = exhaustion(str(error), finetune=True)
    return f"{type(error).__name__}: {found.sentence if found else first_line(error)}"
