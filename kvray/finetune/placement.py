"""What one finetune takes of a cluster, and how its workers share a batch. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from kvray.errors import InputError

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
