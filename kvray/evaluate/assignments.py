"""What one engine takes of a cluster."""

import math
from collections.abc import Mapping, Sequence

from kvray.errors import ResourceError
from kvray.sweep.model import Runtime


def place(runtime: Runtime, nodes: Sequence[Mapping[str, float]]) -> tuple[float, float, int]:
    """Return CPUs and GPUs of one engine, and how many engines may run at a time; ResourceError if no node holds one.

    ``nodes`` are the resources of every node that the cluster has or its autoscaler may add.
    """
    most_gpus = max((node.get("GPU", 0.0) for node in nodes), default=0.0)
    gpus = runtime.gpus_per_engine
    if gpus is None:
        gpus = float(runtime.tensor_parallel) if most_gpus else 0.0
    able = [node for node in nodes if node.get("GPU", 0.0) >= gpus]
    if not able:
        raise ResourceError(
            f"GPU: one engine needs {gpus:g} on one node, the largest node has {most_gpus:g}; "
            "lower runtime.gpus_per_engine or runtime.tensor_parallel"
        )
    most_cpus = max(node.get("CPU", 0.0) for node in able)
    cpus = runtime.cpus_per_engine
    if cpus is None:
        # Engines share their nodes evenly; a node with fewer CPUs than engines runs them one after the other.
        cpus = max(1.0, most_cpus // math.ceil(runtime.engines / len(able)))
    if most_cpus < cpus:
        raise ResourceError(
            f"CPU: one engine needs {cpus:g} on one node, the largest node has {most_cpus:g}; "
            "lower runtime.cpus_per_engine"
        )
    fit = sum(
        int(min(node.get("CPU", 0.0) // cpus, node.get("GPU", 0.0) // gpus if gpus else math.inf)) for node in able
    )
    return cpus, gpus, max(1, min(runtime.engines, fit))
