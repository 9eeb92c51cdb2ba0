"""What nodes told, against what a run needs: problems, each with what was found, is expected and is to be typed. Pure.

A problem that stops nothing (a slower object store, say) is a note.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from kvray.cli.doctor.probe import STORE
from kvray.errors import install_command

PACKAGES = ("kvray", "ray", "torch", "transformers", "peft", "vllm", "pyarrow")  # in one version on all nodes
OPTIONAL = ("lm_eval",)  # likewise, or on none
DRIVERS = {11: 450, 12: 525, 13: 580}
"""The least NVIDIA driver on Linux by CUDA's major version (NVIDIA, "CUDA Compatibility", section 2)."""
ROOM = 2**30  # bytes free wherever something is written, beside models
SKEW_S = 30.0  # seconds that clocks may differ: leases are kept by them, and S3 refuses requests 15 minutes off
SHARED = 2**30  # bytes of /dev/shm; NCCL and Ray's object store use it, and a container has 64 MiB by default


@dataclass(frozen=True)
class Node:
    """The answers of a node (:mod:`kvray.cli.doctor.probe`); None of an ``error`` or a reason: all is well."""

    id: str
    name: str  # address and the start of the id
    resources: dict[str, float]  # CPUs and GPUs that Ray hands out
    versions: dict[str, str | None]  # None: not installed
    cpus: int
    memory_bytes: int
    gpus: list[dict[str, Any]]  # name, memory_mib, driver of each, by nvidia-smi
    cuda: dict[str, Any] | None  # build, error; None without GPUs or torch
    disks: list[dict[str, Any]]  # what, path, device, free (bytes), error; None in it for a store that is on no disk
    shared_memory: int | None  # bytes of /dev/shm
    store: str | None  # why the store cannot be used
    base: str | None  # why the base model's weights cannot be loaded
    skew: float = 0.0  # seconds that its clock differs at least from the driver's


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a node (or, ``where`` empty, with the cluster)."""

    where: str
    found: str
    expected: str
    todo: str
    stops: bool = True

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        kind = "problem" if self.stops else "note"
        return f"{kind}: {place}found {self.found}; expected {self.expected}; {self.todo}"


def judge(nodes: Sequence[Node], weights: int = 0) -> list[Problem]:
    """Return the problems of single nodes, and what differs between nodes; ``weights``: the base model's bytes."""
    found: list[Problem] = []
    for node in nodes:
        anywhere = {name for name in OPTIONAL for other in nodes if other.versions.get(name)}
        todo = f"type {install_command('gpu' if node.gpus else 'cpu')}"
        found += [
            Problem(node.name, f"no {name}", "the package", todo)
            for name in PACKAGES
            if node.versions.get(name) is None
        ]
        found += [
            Problem(node.name, f"no {name}", "it, as other nodes have", f"type {install_command('benchmarks')}")
            for name in OPTIONAL
            if node.versions.get(name) is None and name in anywhere
        ]
        for look in (_devices, _memory, _reach):
            found += look(node)
        found += _room(node, weights)
    for name in ("python", *PACKAGES, *OPTIONAL):
        found += _differing(name, nodes, lambda node, name=name: node.versions.get(name))  # type: ignore[misc]
    return found


def driver_needed(node: Node) -> int:
    """Return the least major version of NVIDIA's driver for what is installed on a node."""
    build = (node.cuda or {}).get("build")
    return DRIVERS.get(int(str(build).partition(".")[0]) if build else max(DRIVERS), DRIVERS[max(DRIVERS)])


def _devices(node: Node) -> Iterator[Problem]:
    if node.resources.get("GPU") and not node.gpus:
        yield Problem(
            node.name,
            "no GPU by nvidia-smi",
            f"{node.resources['GPU']:g}, as Ray hands out",
            "start the container with --gpus all, on a host with NVIDIA's driver and container toolkit",
        )
    if not node.gpus:
        return
    driver, needed = str(node.gpus[0]["driver"]), driver_needed(node)
    if int(driver.partition(".")[0]) < needed:
        build = (node.cuda or {}).get("build") or max(DRIVERS)
        todo = f"on the host: apt install nvidia-driver-{needed}-server, or use another image (cluster.yaml: ImageId)"
        yield Problem(node.name, f"NVIDIA driver {driver}", f"{needed} or newer, for CUDA {build}", todo)
    elif node.cuda and node.cuda["error"]:
        todo = f"type {install_command('gpu')}"
        found = f"{len(node.gpus)} GPUs that torch cannot use ({node.cuda['error']})"
        yield Problem(node.name, found, "a torch of CUDA", todo)


def _memory(node: Node) -> Iterator[Problem]:
    if node.shared_memory is not None and node.shared_memory < SHARED:
        yield Problem(
            node.name,
            f"/dev/shm of {_size(node.shared_memory)}",
            f"{_size(SHARED)} or more",
            "docker run --shm-size 8g; Kubernetes: an emptyDir of medium Memory at /dev/shm",
            stops=bool(node.gpus),  # NCCL fails without; on CPUs Ray's objects only go to the disk
        )


def _reach(node: Node) -> Iterator[Problem]:
    if node.store is not None:
        todo = "give the node credentials for it (a role, AWS_… or GOOGLE_… variables) and a route"
        yield Problem(node.name, f"no use of the store: {node.store}", "read, write, create, delete", todo)
    if node.base is not None:
        todo = "ask its owner on the hub, then set HF_TOKEN on every node" if "gated" in node.base else _HUB
        yield Problem(node.name, node.base, "weights that every node can load", todo)
    if node.skew > SKEW_S:
        found = f"a clock {node.skew:.0f} s off the driver's"
        yield Problem(
            node.name, found, f"less than {SKEW_S:.0f} s", "type sudo chronyc makestep, or timedatectl set-ntp true"
        )


_HUB = (
    "give the node a way to the hub, or set HF_HOME (runtime.model_cache) to a cache that has the model: "
    "hf download ORG/NAME where there is a hub"
)


def _room(node: Node, weights: int) -> Iterator[Problem]:
    """Compare free space with what is written there, together where two places are on one device."""
    needed: dict[int, int] = {}
    for disk in filter(None, node.disks):
        needed[disk["device"]] = needed.get(disk["device"], ROOM) + (0 if disk["what"] == STORE else weights)
    for disk in filter(None, node.disks):
        place = f"{disk['what']} {disk['path']}"
        if disk["error"] is not None:
            found = f"{place} cannot be written: {disk['error']}"
            yield Problem(node.name, found, "a directory that kvray may write", f"type ls -ld {disk['path']}")
        elif disk["free"] < needed[disk["device"]]:
            room = _size(needed[disk["device"]])
            knobs = {"scratch": "set runtime.scratch", "model cache": "set runtime.model_cache", STORE: "use --store"}
            todo = f"make room, or {knobs[disk['what']]} to a larger disk"
            yield Problem(node.name, f"{_size(disk['free'])} free for the {place}", f"{room} or more", todo)


def _differing(name: str, nodes: Sequence[Node], value: Callable[[Node], str | None]) -> Iterator[Problem]:
    holders: dict[str, list[str]] = {}
    for node in nodes:
        if (own := value(node)) is not None:
            holders.setdefault(own, []).append(node.name)
    if len(holders) > 1:
        where = "; ".join(f"{own} on {', '.join(names)}" for own, names in sorted(holders.items()))
        yield Problem("", f"{name} {where}", "one version on all nodes", "start all nodes from one image")


def _size(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
