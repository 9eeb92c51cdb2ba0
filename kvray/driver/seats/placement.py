"""What a seat holds of a cluster, how many seats there may be, and what can never be placed. Pure.

A seat is an engine or a slot for finetunes (:mod:`kvray.planning.work`). What it holds is decided once, at the start of
a run; whether one more fits is asked of the :class:`Capacity` of the moment, as nodes come and go. Resources are Ray's:
``CPU`` and ``GPU``, of which a seat may hold fractions.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from kvray.errors import InputError, ResourceError
from kvray.finetune.placement import Shape
from kvray.models.reference import BaseModelRef
from kvray.sweep.model import Runtime

REFUSED_S = 60.0
"""Seconds for which an autoscaler must refuse a demand until it counts as never: several of its rounds of 5 s, since
nodes that serve others now may be given back."""
_EPSILON = 1e-6
"""Fractions of a CPU or GPU add up with rounding; Ray counts in ten-thousandths."""

Resources = Mapping[str, float]


@dataclass(frozen=True)
class NodeType:
    """A sort of node that an autoscaler starts: what one has, and how many more of it may come."""

    name: str
    resources: Resources
    more: int


@dataclass(frozen=True)
class Capacity:
    """What a cluster has and may get.

    Attributes:
        nodes: what each live node has in all, whoever uses it.
        types: what an autoscaler may add to them; empty without one, or where it does not say.
        silent: whether there is an autoscaler that does not say what it may add.
        refused: (CPU, GPU) of demands that the autoscaler has now and says that it cannot meet.
        launching: whether nodes are on their way.
        failed: why nodes could not be started lately.
    """

    nodes: Sequence[Resources] = ()
    types: Sequence[NodeType] = ()
    silent: bool = False
    refused: Collection[tuple[float, float]] = ()
    launching: bool = False
    failed: Sequence[str] = ()

    def known(self) -> list[Resources]:
        """Return what each node has that is there or may come."""
        return [*self.nodes, *(each.resources for each in self.types for _ in range(each.more))]

    def refuses(self, shape: Shape) -> bool:
        """Return whether the autoscaler refuses a demand of this shape."""
        return any(
            abs(cpus - shape.cpus) < _EPSILON and abs(gpus - shape.gpus) < _EPSILON for cpus, gpus in self.refused
        )

    def __str__(self) -> str:
        """Say what there is: ``nodes of 8 CPU + 0 GPU; up to 4 more of type gpu with 8 CPU + 1 GPU``."""
        live = ", ".join(sorted({_size(node) for node in self.nodes}))
        types = [f"up to {each.more} more of type {each.name} with {_size(each.resources)}" for each in self.types]
        silent = ["an autoscaler that does not say what it may add"] if self.silent else []
        return "; ".join([f"nodes of {live}" if live else "no node", *types, *silent])


@dataclass(frozen=True)
class Place:
    """What each seat of a lane holds.

    Attributes:
        shape: workers of a seat, 1 for an engine, and what each holds.
        threads: CPU threads that each worker computes with.
        most: seats at a time; None: as many as there is room for.
    """

    shape: Shape
    threads: int
    most: int | None = None

    @property
    def needs(self) -> dict[str, float]:
        """What a seat holds in all."""
        return {"CPU": self.shape.workers * self.shape.cpus, "GPU": self.shape.workers * self.shape.gpus}


def place_finetunes(runtime: Runtime, capacity: Capacity, base: BaseModelRef) -> Place:
    """Return what a slot holds, in which one finetune of ``base`` runs at a time.

    Its workers may be on several nodes. Raises ResourceError if a slot can never be placed, or only on CPUs that the
    sweep did not ask for; InputError if its workers would share one GPU, which NCCL refuses.
    """
    gpus = runtime.gpus_per_finetune
    if gpus is None:
        gpus = float(_takes_gpus(capacity, base, "gpus_per_finetune"))
    shape = Shape(runtime.workers_per_finetune, runtime.cpus_per_finetune, gpus)
    if shape.workers > 1 and 0 < shape.gpus < 1:
        raise InputError(
            f"runtime.gpus_per_finetune {shape.gpus:g} with {shape.workers} workers_per_finetune; "
            "expected whole GPUs, since the workers of one finetune cannot share a GPU"
        )
    _check(shape, capacity, runtime, "finetune", ["workers_per_finetune", "cpus_per_finetune", "gpus_per_finetune"])
    return Place(shape, max(1, int(shape.cpus)), runtime.concurrent_finetunes)


def place_engines(runtime: Runtime, capacity: Capacity, base: BaseModelRef, local: bool) -> Place:
    """Return what an engine holds that serves ``base``; ``local``: the Ray is this machine's, started for this run.

    On GPUs an engine reserves half of its GPUs' share of a node's CPUs, as nodes differ that of the smallest; the rest
    is for finetunes and for the making of datasets. On CPUs there is one engine unless the sweep says more. It computes
    with its share of its node; of a local Ray it reserves one CPU alone, so that a finetune may run beside it, of
    another, whose CPUs others want too, all but one of them.

    Raises ResourceError if an engine can never be placed, or only on CPUs that the sweep did not ask for.
    """
    gpus = runtime.gpus_per_engine
    if gpus is None:
        gpus = float(runtime.tensor_parallel * _takes_gpus(capacity, base, "gpus_per_engine"))
    at_once = runtime.engines or 1
    if gpus:
        cpus, threads = _share_beside_gpus(capacity, gpus)
    else:
        share = _share_of_cpus(capacity, at_once)
        cpus, threads = (1.0 if local else max(1.0, share - 1.0)), int(share)
    if runtime.cpus_per_engine is not None:
        cpus = runtime.cpus_per_engine
        threads = max(1, int(cpus))
    shape = Shape(1, cpus, gpus)
    _check(shape, capacity, runtime, "engine", ["cpus_per_engine", "gpus_per_engine", "tensor_parallel"])
    return Place(shape, threads, runtime.engines if gpus else at_once)


def room(capacity: Capacity, runtime: Runtime, shapes: Mapping[str, Shape]) -> Callable[[Mapping[str, int]], bool]:
    """Return what tells whether so many seats, by lane, may exist side by side.

    ``shapes`` are those of lanes; seats of other lanes hold nothing of the cluster.
    """
    return lambda counts: fit(
        capacity, runtime, [(shapes[lane], count) for lane, count in counts.items() if lane in shapes]
    )


def fit(capacity: Capacity, runtime: Runtime, seats: Iterable[tuple[Shape, int]]) -> bool:
    """Return whether so many seats of each shape have room side by side, within ``runtime.max_gpus``.

    Each worker is whole on one node; nodes that may come count. Where an autoscaler does not say what it may add, there
    is room for what it does not refuse.
    """
    asked = [(shape, count) for shape, count in seats if count]
    most = math.inf if runtime.max_gpus is None else runtime.max_gpus
    if sum(shape.workers * shape.gpus * count for shape, count in asked) > most + _EPSILON:
        return False
    left = [dict(node) for node in capacity.known()]
    for shape, count in sorted(asked, key=lambda each: (-each[0].gpus, -each[0].cpus)):
        workers = shape.workers * count
        for node in left:
            here = min(workers, shape.fits(node))
            if here:
                workers -= here
                node["CPU"] = node.get("CPU", 0.0) - here * shape.cpus
                node["GPU"] = node.get("GPU", 0.0) - here * shape.gpus
        if workers and (not capacity.silent or capacity.refuses(shape)):
            return False
    return True


def check_wait(waiting: Collection[Shape], unplaced_s: float, capacity: Capacity, runtime: Runtime) -> None:
    """Check that seats of these shapes may still hope for a place, after nothing had one for ``unplaced_s`` seconds.

    Raises ResourceError after ``runtime.wait_minutes``, or sooner if the autoscaler refuses every shape and starts
    nothing.
    """
    if not waiting:
        return
    wanted = f"{' or '.join(dict.fromkeys(map(_each, waiting)))} on one node, the cluster has {capacity}"
    live = any(shape.fits(node) for shape in waiting for node in capacity.nodes)
    refused = capacity.silent and not capacity.launching and not live and all(map(capacity.refuses, waiting))
    if refused and unplaced_s >= REFUSED_S:
        raise ResourceError(
            f"nothing of the sweep can be placed: it needs {wanted}, which refuses that; lower what runtime asks for, "
            "or add a node type that has it (ray status lists them)"
        )
    if unplaced_s >= runtime.wait_minutes * 60:
        why = f" ({'; '.join(capacity.failed)})" if capacity.failed else ""
        raise ResourceError(
            f"nothing of the sweep could be placed for {runtime.wait_minutes:g} minutes (runtime.wait_minutes): it "
            f"needs {wanted}{why}; ray status shows what is waited for. What was made is kept: the same command goes on"
        )


def _takes_gpus(capacity: Capacity, base: BaseModelRef, knob: str) -> bool:
    """Return whether seats take GPUs where the sweep does not say; ResourceError for a hub model without any."""
    on_hub = base.revision is not None
    if any(node.get("GPU", 0.0) > 0 for node in capacity.known()) or (capacity.silent and on_hub):
        return True
    if on_hub:
        raise ResourceError(
            f"{base.name} is a model of the hub and the cluster has no GPU ({capacity}); a CPU is taken for it only if "
            f"the sweep says so: --set runtime.{knob}=0"
        )
    return False


def _share_beside_gpus(capacity: Capacity, gpus: float) -> tuple[float, int]:
    """Return the CPUs to reserve beside so many GPUs of a node, and the threads to compute with."""
    shares = [
        node.get("CPU", 0.0) / math.floor(node["GPU"] / gpus + _EPSILON)
        for node in capacity.known()
        if node.get("GPU", 0.0) + _EPSILON >= gpus
    ]
    share = min(shares, default=1.0)
    # Nodes with fewer CPUs than GPUs leave less than one to each.
    reserved = float(max(1, share // 2)) if share >= 1 else math.floor(share * 100) / 100
    return reserved or 0.01, max(1, int(share))


def _share_of_cpus(capacity: Capacity, at_once: int) -> float:
    """Return an engine's share of a node's CPUs, if so many engines are spread over the cluster."""
    nodes = [node.get("CPU", 0.0) for node in capacity.known() if node.get("CPU", 0.0) >= 1]
    # Of nodes with fewer CPUs than engines some engines have to wait.
    return max(1.0, max(nodes, default=1.0) // math.ceil(at_once / max(1, len(nodes))))


def _check(shape: Shape, capacity: Capacity, runtime: Runtime, what: str, knobs: Sequence[str]) -> None:
    """Raise ResourceError if a seat of this shape has no place even on a cluster that does nothing else."""
    lower = f"lower {' or '.join(f'runtime.{knob}' for knob in knobs)}"
    gpus = shape.workers * shape.gpus
    if runtime.max_gpus is not None and gpus > runtime.max_gpus + _EPSILON:
        raise ResourceError(f"one {what} needs {gpus:g} GPU, runtime.max_gpus allows {runtime.max_gpus}; {lower}")
    if capacity.silent:
        return
    held = sum(shape.fits(node) for node in capacity.known())
    if held >= shape.workers:
        return
    each = _each(shape)
    if not held:
        worker = f"a worker of one {what}" if shape.workers > 1 else f"one {what}"
        raise ResourceError(f"{worker} needs {each} on one node; the cluster has {capacity}; {lower}, or add nodes")
    raise ResourceError(
        f"one {what} needs {shape.workers} workers of {each}, each whole on one node; the cluster has {capacity}, "
        f"which hold {held} of them; {lower}, or add nodes"
    )


def _each(shape: Shape) -> str:
    return _size({"CPU": shape.cpus, "GPU": shape.gpus})


def _size(resources: Resources) -> str:
    return f"{resources.get('CPU', 0.0):g} CPU + {resources.get('GPU', 0.0):g} GPU"
