"""Check every node of a cluster before money is spent: versions, devices, and whether all reach one store."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from kvray.console import table
from kvray.driver.connection import connect
from kvray.errors import KvrayError, install_command, last_line
from kvray.store.store import Store
from kvray.sweep.model import Runtime

TIMEOUT_S = 60.0  # after which a node without an answer is reported as silent
PACKAGES = ("kvray", "ray", "torch", "transformers", "peft", "vllm", "pyarrow")  # in one version on all nodes
OPTIONAL = ("lm_eval",)  # likewise, or on none


def check(store: Store, address: str | None = None) -> Report:
    """Run a small task on every live node of a Ray and compare the answers.

    Each node reads and writes a small document in the store; all are removed afterwards. ``address`` None takes
    RAY_ADDRESS, or starts a Ray here. Raises ResourceError if that Ray does not answer.
    """
    name, problems = f"doctor/{uuid.uuid4().hex}", []
    try:
        store.write_document(f"{name}-driver", name.encode())
    except KvrayError as error:
        problems.append(f"store {store.uri}: cannot be written from here: {error}")
    try:
        with connect(Runtime(address=address)):
            nodes, silent = _ask(store.uri, name)
    finally:
        written = _remove_documents(store, name)
    problems += silent + judge(nodes)
    for node in nodes:
        if node.store is None and f"{name}-{node.id}" not in written:
            problems.append(
                f"store {store.uri}: what {node.name} wrote there does not show here, so it is another place; "
                "use s3:// or a file system that all nodes share"
            )
    return Report(store.uri, tuple(nodes), tuple(dict.fromkeys(problems)))


def judge(nodes: Sequence[Node]) -> list[str]:
    """Return the problems of single nodes, and the versions that differ between nodes."""
    problems = []
    for node in nodes:
        problems += [
            f"{node.name}: {name} is missing: type {install_command('gpu' if node.gpus else 'cpu')}"
            for name in PACKAGES
            if node.versions.get(name) is None
        ]
        problems += [
            f"{node.name}: {name} is missing, which other nodes have: type {install_command('benchmarks')}"
            for name in OPTIONAL
            if node.versions.get(name) is None and any(other.versions.get(name) for other in nodes)
        ]
        if node.gpus and node.versions.get("torch") is not None and not node.cuda:
            todo = install_command("gpu")
            problems.append(f"{node.name}: has {len(node.gpus)} GPUs but its torch sees none: type {todo}")
        if node.store is not None:
            problems.append(f"{node.name}: does not reach the store: {node.store}")
    for name in ("python", *PACKAGES, *OPTIONAL):
        by_version: dict[str, list[str]] = {}
        for node in nodes:
            version = node.versions.get(name)
            if version is not None:
                by_version.setdefault(version, []).append(node.name)
        if len(by_version) > 1:
            where = "; ".join(f"{version} on {', '.join(names)}" for version, names in sorted(by_version.items()))
            problems.append(f"{name} differs between nodes: {where}")
    return problems


def _ask(uri: str, name: str) -> tuple[list[Node], list[str]]:
    """Return the answers of all live nodes, and a line for each node that gave none."""
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    probe = ray.remote(num_cpus=0, max_retries=0)(_probe())
    asked = {}
    for node in ray.nodes():
        if node["Alive"]:
            on_node = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            reference = probe.options(scheduling_strategy=on_node).remote(
                uri, name, node["NodeID"], (*PACKAGES, *OPTIONAL)
            )
            asked[reference] = node
    done, _ = ray.wait(list(asked), num_returns=len(asked), timeout=TIMEOUT_S)
    nodes, silent = [], []
    for reference, node in asked.items():
        label = f"{node['NodeManagerAddress']} ({node['NodeID'][:8]})"
        if reference not in done:
            silent.append(f"{label}: did not answer within {TIMEOUT_S:.0f} s")
            continue
        try:
            resources = {key: node["Resources"][key] for key in ("CPU", "GPU") if key in node["Resources"]}
            nodes.append(Node(id=node["NodeID"], name=label, resources=resources, **ray.get(reference)))
        except RayError as error:
            silent.append(f"{label}: its task failed: {last_line(error)}")
    return nodes, silent


def _probe() -> Callable[..., dict[str, Any]]:
    """Return the function that a node runs: a local one, so that it is pickled by value (a node may lack kvray)."""

    def probe(uri: str, name: str, node: str, packages: Sequence[str]) -> dict[str, Any]:
        import importlib.metadata
        import os
        import platform
        import subprocess

        versions: dict[str, str | None] = {"python": platform.python_version()}
        for package in packages:
            versions[package] = None
            for distribution in (package, f"{package}-cpu"):
                try:
                    versions[package] = importlib.metadata.version(distribution)
                except importlib.metadata.PackageNotFoundError:
                    continue
                break
        try:
            query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
            answer = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True)
            gpus = [line.strip() for line in answer.stdout.splitlines() if line.strip()]
        except (OSError, subprocess.SubprocessError):
            gpus = []
        cuda = False
        if gpus and versions["torch"] is not None:
            try:
                import torch

                cuda = torch.version.cuda is not None and torch.cuda.is_available()
            except (ImportError, OSError, RuntimeError):
                cuda = False
        problem = None
        try:
            from kvray.store.store import Store

            store = Store(uri)
            if store.read_document(f"{name}-driver") is None:
                problem = "it does not see what the driver wrote there, so it is another place"
            store.write_document(f"{name}-{node}", node.encode())
        except Exception as error:
            # Any failure (no kvray, no credentials, no route) is this node's answer.
            problem = f"{type(error).__name__}: {error}"
        return {
            "versions": versions,
            "cpus": os.cpu_count() or 0,
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "gpus": gpus,
            "cuda": cuda,
            "store": problem,
        }

    return probe


def _remove_documents(store: Store, name: str) -> set[str]:
    try:
        documents = set(store.documents(f"{name}-"))
        for document in documents:
            store.delete_document(document)
    except KvrayError:
        return set()  # the store is out of reach, which is reported already
    return documents


@dataclass(frozen=True)
class Node:
    """The answer of a node; ``store`` is why it does not reach the store, None if it does."""

    id: str
    name: str  # address and the start of the id
    resources: dict[str, float]  # CPUs and GPUs that Ray hands out
    versions: dict[str, str | None]  # None: not installed
    cpus: int
    memory_bytes: int
    gpus: list[str]  # name and memory of each, by nvidia-smi
    cuda: bool  # whether torch can use them
    store: str | None


@dataclass(frozen=True)
class Report:
    """The result of :func:`check`: the store's URI, the nodes that answered, a line per problem."""

    store: str
    nodes: tuple[Node, ...]
    problems: tuple[str, ...]

    def text(self) -> str:
        """Return the report for a terminal: a column per node, then the problems."""
        packages = ("python", *PACKAGES, *OPTIONAL)
        rows: list[list[object]] = [[name, *(node.versions.get(name) for node in self.nodes)] for name in packages]
        rows.append(["CPUs", *(f"{node.cpus} (Ray: {node.resources.get('CPU', 0):g})" for node in self.nodes)])
        rows.append(["memory", *(f"{node.memory_bytes / 2**30:.0f} GiB" for node in self.nodes)])
        rows.append(["GPUs", *("; ".join(node.gpus) or "none" for node in self.nodes)])
        rows.append(["store", *("reached" if node.store is None else "NOT REACHED" for node in self.nodes)])
        problems = [f"problem: {problem}" for problem in self.problems] or ["no problems"]
        nodes = table(["", *(node.name for node in self.nodes)], rows)
        return "\n".join([f"store {self.store}", "", nodes, "", *problems])
