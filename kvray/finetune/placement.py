"""What one finetune takes of a cluster, how many fit at a time, and how workers share a batch. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kvray.errors import InputError, ResourceError
from kvray.sweep.model import Runtime

CPU_ROWS = 4
"""Rows per forward pass on a CPU, where memory seldom is the limit and longer batches only need more padding."""
_EPSILON = 1e-9
"""Fractions of a CPU or GPU add up with rounding."""


@dataclass(frozen=True)
class Shape:
    """What one finetune takes of the cluster: worker processes, CPUs and GPUs per worker."""

    workers: int
    cpus: float
    gpus: float

    def fits(self, resources: Mapping[str, float]) -> int:
        """Return how many workers the resources of a node hold."""
        by_cpu = int(resources.get("CPU", 0) / self.cpus + _EPSILON)
        return min(by_cpu, int(resources.get("GPU", 0) / self.gpus + _EPSILON)) if self.gpus else by_cpu


def place(runtime: Runtime, nodes: Sequence[Mapping[str, float]], most: Mapping[str, float]) -> tuple[Shape, int]:
    """Return what one finetune takes, and how many run at a time: as many as fit, ``concurrent_finetunes`` at most.

    ``nodes`` are the resources of every live node; ``most``, which an autoscaler may have in all (empty without one),
    counts like them, though whether one of its nodes could hold a whole worker is not checked. Raises ResourceError,
    with the resource, if not one finetune fits; InputError if workers would share one GPU, which NCCL refuses.
    """
    total = {name: max(sum(n.get(name, 0) for n in nodes), most.get(name, 0)) for name in ("CPU", "GPU")}
    gpus = runtime.gpus_per_finetune
    shape = Shape(
        workers=runtime.workers_per_finetune,
        cpus=runtime.cpus_per_finetune,
        gpus=gpus if gpus is not None else float(total["GPU"] > 0),
    )
    if shape.workers > 1 and 0 < shape.gpus < 1:
        raise InputError(
            f"runtime.gpus_per_finetune {shape.gpus:g} with {shape.workers} workers_per_finetune; "
            "expected whole GPUs, since the workers of one finetune cannot share a GPU"
        )
    for name, key, each in (("CPU", "cpus_per_finetune", shape.cpus), ("GPU", "gpus_per_finetune", shape.gpus)):
        if shape.workers * each > total[name] + _EPSILON:
            raise ResourceError(
                f"one finetune needs {shape.workers * each:g} {name} ({shape.workers} workers x {key} {each:g}) but "
                f"the cluster has {total[name]:g}; lower runtime.workers_per_finetune or runtime.{key}, or add nodes"
            )
    fits = max(sum(shape.fits(node) for node in nodes), shape.fits(most))
    if fits < shape.workers:
        sizes = ", ".join(sorted({f"{n.get('CPU', 0):g} CPU + {n.get('GPU', 0):g} GPU" for n in nodes}))
        raise ResourceError(
            f"one finetune needs {shape.workers} workers of {shape.cpus:g} CPU + {shape.gpus:g} GPU, each whole on one "
            f"node; the nodes have {sizes}, which hold {fits}"
        )
    return shape, min(fits // shape.workers, runtime.concurrent_finetunes or fits)


def batch_shape(batch_size: int, workers: int, per_device: int) -> tuple[int, int]:
    """Return (rows per micro-batch, accumulation steps) of exactly the recipe's batch; InputError if none are."""
    if batch_size % workers:
        fits = ", ".join(str(n) for n in range(1, batch_size + 1) if batch_size % n == 0)
        raise InputError(
            f"finetune.batch_size {batch_size} cannot be shared evenly by runtime.workers_per_finetune {workers}; "
            f"use {fits} workers, or a batch_size that is a multiple of {workers}"
        )
    share = batch_size // workers
    rows = max(n for n in range(1, min(share, per_device) + 1) if share % n == 0)
    return rows, share // rows
