"""Check every node of a cluster before money is spent: devices, disks, versions, store, the base model's weights."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from kvray.cli.doctor import probe
from kvray.cli.doctor.judge import (
    DRIVERS,
    OPTIONAL,
    PACKAGES,
    ROOM,
    SHARED,
    Node,
    Problem,
    driver_needed,
    judge,
)
from kvray.console import table, track
from kvray.driver.connection import connect
from kvray.driver.seats.cluster import Cluster
from kvray.errors import InputError, KvrayError, first_line, last_line
from kvray.models.reference import HUB_TIMEOUT_S, BaseModelRef, resolve
from kvray.store.store import Store
from kvray.sweep.model import Runtime

ANSWER_S = (
    360.0  # after which a node without an answer is reported as silent; importing torch with CUDA may take minutes
)
WAIT_MINUTES = 15.0  # for a GPU node to start: a large image over a slow network
_POLL_S = 2.0


def check(
    store: Store, runtime: Runtime | None = None, base_model: str | None = None, wait_minutes: float = WAIT_MINUTES
) -> Report:
    """Run a small task on every live node of a Ray and judge the answers.

    Where an autoscaler may add GPU nodes and there is none, one is started first. Each node reads and writes a small
    document in the store; all are removed afterwards.

    Args:
        store: the store that a run would use.
        runtime: ``address`` (None: RAY_ADDRESS, or a Ray is started here), ``scratch`` and ``model_cache`` count.
        base_model: whose weights every node must be able to load; None for none.
        wait_minutes: for a GPU node to start; 0 starts none.

    Raises:
        ResourceError: that Ray does not answer.
    """
    runtime = runtime or Runtime()
    name, problems = f"doctor/{uuid.uuid4().hex}", []
    try:
        store.write_document(f"{name}-driver", name.encode())
    except KvrayError as error:
        found = f"store {store.uri} cannot be written from here: {error}"
        problems.append(Problem("driver", found, "a store that can be read and written", "use --store, or credentials"))
    asked: dict[str, Any] = {"scratch": runtime.scratch, "model_cache": runtime.model_cache}
    weights = 0
    try:
        if base_model is not None:
            model, weights = _model(base_model)
            asked |= model
    except InputError as error:
        problems.append(Problem("driver", str(error), "a base model that can be loaded", "see above"))
    try:
        with connect(runtime) as connection, _gpu_node(connection.local, wait_minutes, problems):
            nodes, silent = _ask(store.uri, name, asked)
    finally:
        written = _remove_documents(store, name)
    problems += silent + judge(nodes, weights)
    for node in nodes:
        if node.store is None and f"{name}-{node.id}" not in written:
            found = f"nothing in the store {store.uri} of what it wrote there"
            todo = "use s3://, gs:// or a file system that all nodes share"
            problems.append(Problem(node.name, found, "one store for all nodes", todo))
    return Report(store.uri, tuple(nodes), tuple(dict.fromkeys(problems)))


def _model(name: str) -> tuple[dict[str, Any], int]:
    """Return what a node is asked about a base model, and the bytes of its weights; InputError as :func:`resolve`."""
    base: BaseModelRef = resolve(name)
    if base.api:
        return {}, 0
    if base.revision is None:
        return {"location": base.location if base.name == base.location else None}, 0
    from huggingface_hub import HfApi

    files = {}
    try:
        told = HfApi().model_info(base.location, revision=base.revision, files_metadata=True, timeout=HUB_TIMEOUT_S)
        files = {each.rfilename: each.size or 0 for each in told.siblings or ()}
    except Exception as error:
        # The client passes on whatever its HTTP library raises; nodes may have the model in their caches.
        if not base.cached:
            raise InputError(f"the hub does not list the files of {name}: {first_line(error)}") from error
    tensors = {file: size for file, size in files.items() if file.endswith(".safetensors")}
    file = min(tensors, default="config.json")
    return {"location": base.location, "revision": base.revision, "file": file}, sum(tensors.values())


@contextmanager
def _gpu_node(local: bool, minutes: float, problems: list[Problem]) -> Iterator[None]:
    """Hold a GPU meanwhile, if an autoscaler may bring one and there is none; what keeps it away is a problem."""
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    cluster = Cluster(local)
    capacity = cluster.capacity()
    grows = capacity.silent or any(each.resources.get("GPU") and each.more for each in capacity.types)
    if not minutes or not grows or any(node.get("GPU") for node in capacity.nodes):
        yield
        return
    group = placement_group([{"GPU": 1, "CPU": 1}])
    try:
        ready, started, refused = group.ready(), time.monotonic(), 0
        with track("a GPU node starts", minutes, unit="minutes") as advance:
            while not ray.wait([ready], timeout=_POLL_S)[0]:
                passed = (time.monotonic() - started) / 60
                capacity = cluster.capacity()
                refused = refused + 1 if (1.0, 1.0) in capacity.refused and not capacity.launching else 0
                if passed >= minutes or refused * _POLL_S > 20:
                    break
                advance(passed, capacity.failed[0] if capacity.failed else "")
            else:
                refused = -1
        if refused >= 0:
            why = f" ({'; '.join(capacity.failed)})" if capacity.failed else ""
            never = (
                "no GPU node: the autoscaler has no type for it" if refused else f"no GPU node in {minutes:g} minutes"
            )
            todo = (
                "look at ray status and at the account's quota for GPU instances, or type --wait-minutes 0 without GPUs"
            )
            problems.append(Problem("", f"{never}{why}", "one that the autoscaler starts", todo))
        yield
    finally:
        remove_placement_group(group)


def _ask(uri: str, name: str, asked: Mapping[str, Any]) -> tuple[list[Node], list[Problem]]:
    """Return the answers of all live nodes, and a problem for each node that gave none."""
    import ray
    from ray import cloudpickle
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    cloudpickle.register_pickle_by_value(probe)
    try:
        look = ray.remote(num_cpus=0, max_retries=0)(probe.look)
        sent, running = time.time(), {}
        for node in ray.nodes():
            if node["Alive"]:
                on_node = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                packages = (*PACKAGES, *OPTIONAL)
                task = look.options(scheduling_strategy=on_node)
                running[task.remote(uri, name, node["NodeID"], packages, dict(asked))] = node
    finally:
        cloudpickle.unregister_pickle_by_value(probe)
    nodes, silent, deadline = [], [], time.monotonic() + ANSWER_S
    while running and (left := deadline - time.monotonic()) > 0:
        for reference in ray.wait(list(running), timeout=left)[0]:
            received, node = time.time(), running.pop(reference)
            resources = {key: node["Resources"][key] for key in ("CPU", "GPU") if key in node["Resources"]}
            try:
                told = ray.get(reference)
            except RayError as error:
                found = f"a task that failed: {last_line(error)}"
                silent.append(Problem(_name(node), found, "an answer", "look at ray status and the node's logs"))
                continue
            # The node looked at its clock between these two moments of ours.
            clock = told.pop("clock")
            skew = max(sent - clock, clock - received, 0.0)
            nodes.append(Node(id=node["NodeID"], name=_name(node), resources=resources, skew=skew, **told))
    for node in running.values():
        found = f"no answer within {ANSWER_S:.0f} s"
        silent.append(Problem(_name(node), found, "an answer", "look at ray status and the node's logs"))
    return sorted(nodes, key=lambda each: each.name), silent


def _name(node: Mapping[str, Any]) -> str:
    return f"{node['NodeManagerAddress']} ({node['NodeID'][:8]})"


def _remove_documents(store: Store, name: str) -> set[str]:
    try:
        documents = set(store.documents(f"{name}-"))
        for document in documents:
            store.delete_document(document)
    except KvrayError:
        return set()  # the store is out of reach, which is reported already
    return documents


@dataclass(frozen=True)
class Report:
    """The result of :func:`check`: the store's URI, the nodes that answered, what is wrong."""

    store: str
    nodes: tuple[Node, ...]
    problems: tuple[Problem, ...]

    @property
    def stops(self) -> bool:
        """Whether anything would stop a run."""
        return any(problem.stops for problem in self.problems)

    def text(self) -> str:
        """Return the report for a terminal: what is expected beside a column per node, then the problems."""
        nodes = self.nodes
        packages = ("python", *PACKAGES, *OPTIONAL)
        rows: list[list[object]] = [
            [name, "one version", *(node.versions.get(name) for node in nodes)] for name in packages
        ]
        rows.append(["CPUs", None, *(f"{node.cpus} (Ray: {node.resources.get('CPU', 0):g})" for node in nodes)])
        rows.append(["memory", None, *(_gib(node.memory_bytes) for node in nodes)])
        rows.append(["GPUs", None, *(_gpus(node) for node in nodes)])
        driver = max((driver_needed(node) for node in nodes), default=max(DRIVERS.values()))
        rows.append(
            ["driver", f"{driver} or newer", *(node.gpus[0]["driver"] if node.gpus else None for node in nodes)]
        )
        rows.append(["torch's CUDA", None, *((node.cuda or {}).get("build") for node in nodes)])
        rows.append(["/dev/shm", f"{_gib(SHARED)} free", *(_gib(node.shared_memory) for node in nodes)])
        for index, what in enumerate((probe.STORE, probe.SCRATCH, probe.CACHE)):
            free = [(node.disks[index] or {}).get("free") for node in nodes]
            rows.append([f"{what}: free", f"{_gib(ROOM)} and more", *map(_gib, free)])
        rows.append(["clock", "alike", *(f"{node.skew:.0f} s off" for node in nodes)])
        rows.append([probe.STORE, "reached", *("reached" if node.store is None else "NOT REACHED" for node in nodes)])
        rows.append(["weights", "reached", *("reached" if node.base is None else "NOT REACHED" for node in nodes)])
        columns = table(["", "expected", *(node.name for node in nodes)], rows)
        problems = [str(problem) for problem in self.problems] or ["no problems"]
        return "\n".join([f"store {self.store}", "", columns, "", *problems])


def _gib(count: int | None) -> str | None:
    return None if count is None else f"{count / 2**30:.1f} GiB" if count < 2**30 * 10 else f"{count / 2**30:.0f} GiB"


def _gpus(node: Node) -> str:
    """Return ``8 x NVIDIA L40S 45 GiB``; unlike ones one after the other."""
    names: Sequence[str] = [f"{each['name']} {int(each['memory_mib']) / 1024:.0f} GiB" for each in node.gpus]
    return ", ".join(f"{names.count(each)} x {each}" for each in dict.fromkeys(names)) or "none"
