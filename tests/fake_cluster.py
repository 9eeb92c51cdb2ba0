"""Clusters of several nodes on one machine, with GPUs that are none: one with an autoscaler, one without.

Ray's own ``AutoscalingCluster`` needs a file that its wheel lacks, and ends with ``ray stop --force``, which stops
every Ray on the machine. Here the head is a process group of its own, and only what it started is stopped.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

STORE_BYTES = 80_000_000
HEAD_TYPE = "ray.head.default"  # the name that the provider gives the head
HEAD_ID = "f" * 51 + "00000"
PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
START_S = 90
GPU_NODE = {"CPU": 2, "GPU": 1}


@dataclass(frozen=True)
class FakeCluster:
    """A running Ray; ``home`` is a home directory in which ``ray up`` would have left its configuration."""

    address: str
    folder: Path
    home: Path

    def environment(self, told: bool = True) -> dict[str, str]:
        """Return the environment of a program that joins; ``told``: it sees the configuration of ``ray up``."""
        kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        joined = {"RAY_ADDRESS": self.address, "RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": str(self.folder)}
        return {**kept, **joined, "HOME": str(self.home if told else self.folder)}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("0.0.0.0", 0))
        return int(free.getsockname()[1])


def wait_for(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait until a condition holds; AssertionError, with what was waited for, if it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.2)


@contextlib.contextmanager
def autoscaling(
    types: Mapping[str, tuple[Mapping[str, float], int]], head_cpus: int = 1, idle_s: float = 6.0
) -> Iterator[FakeCluster]:
    """Run a head whose autoscaler (v2, as of ``ray up``) starts nodes of the types: by name, what one has and how many.

    Nodes are processes here; they come after about 5 s and go once they were idle for ``idle_s``.
    """
    import ray

    folder = Path(tempfile.mkdtemp(prefix="kvfc"))  # sockets' paths must be short
    home = folder / "home"
    home.mkdir()
    port = free_port()
    address = f"{ray.util.get_node_ip_address()}:{port}"
    config = home / "ray_bootstrap_config.yaml"
    config.write_text(json.dumps(_configuration(types, head_cpus, idle_s, address)))
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "disabled",
        "RAY_TMPDIR": str(folder),
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_enable_autoscaler_v2": "1",
        # Without these two the autoscaler takes the head for not running yet, and starts nothing.
        "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
        "RAY_NODE_TYPE_NAME": HEAD_TYPE,
    }
    environment.pop("RAY_ADDRESS", None)
    options = [
        f"--num-cpus={head_cpus}",
        f"--object-store-memory={STORE_BYTES}",
        f"--port={port}",
        f"--ray-client-server-port={free_port()}",
    ]
    quiet = ["--include-dashboard=false", "--disable-usage-stats", "--min-worker-port=0", "--max-worker-port=0"]
    command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", *options, *quiet]
    log = folder / "head.log"
    with log.open("w") as output:
        head = subprocess.Popen(
            [*command, f"--autoscaling-config={config}"],
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:

        def up() -> bool:
            assert head.poll() is None, log.read_text()
            return "--block" in log.read_text()

        wait_for(up, START_S, "the head")
        yield FakeCluster(address, folder, home)
    finally:
        _end(head)
        shutil.rmtree(folder, ignore_errors=True)


def _configuration(
    types: Mapping[str, tuple[Mapping[str, float], int]], head_cpus: int, idle_s: float, address: str
) -> dict[str, Any]:
    workers = {
        name: {
            "resources": {**resources, "object_store_memory": STORE_BYTES},
            "node_config": {},
            "min_workers": 0,
            "max_workers": most,
        }
        for name, (resources, most) in types.items()
    }
    commands = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    return {
        "cluster_name": "fake",
        "max_workers": sum(most for _, most in types.values()),
        "idle_timeout_minutes": idle_s / 60,
        "upscaling_speed": 100,
        # The provider of type fake_multinode reads an example that Ray's wheel lacks.
        "provider": {"type": "external", "module": PROVIDER, "launch_multiple": True, "gcs_address": address},
        "head_node_type": HEAD_TYPE,
        "available_node_types": {
            HEAD_TYPE: {"resources": {"CPU": head_cpus}, "node_config": {}, "max_workers": 0},
            **workers,
        },
        **{name: {} for name in ("docker", "auth", "file_mounts")},
        **{name: [] for name in ("cluster_synced_files", "rsync_exclude", "rsync_filter")},
        "file_mounts_sync_continuously": False,
        **{f"{name}_commands": [] for name in commands},
    }


def _end(head: subprocess.Popen[bytes]) -> None:
    """Stop a head and all that it started."""
    started = psutil.Process(head.pid).children(recursive=True) if head.poll() is None else []
    with contextlib.suppress(ProcessLookupError):
        os.killpg(head.pid, signal.SIGTERM)
    _, left = psutil.wait_procs(started, timeout=10)
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    head.wait(timeout=30)


@contextlib.contextmanager
def nodes(*sizes: Mapping[str, float]) -> Iterator[tuple[Any, list[Any]]]:
    """Run a Ray without an autoscaler, a head of no CPU and a node of each size.

    Gives Ray's own ``Cluster`` (``address``, ``remove_node``) and its nodes; :func:`add` adds one.
    """
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True,
        shutdown_at_exit=False,
        head_node_args={"num_cpus": 0, "object_store_memory": STORE_BYTES, "include_dashboard": False},
    )
    try:
        yield cluster, [add(cluster, size) for size in sizes]
    finally:
        cluster.shutdown()


def add(cluster: Any, size: Mapping[str, float]) -> Any:
    """Add a node of so many CPUs and GPUs, and wait until it is there."""
    return cluster.add_node(
        num_cpus=size.get("CPU", 0), num_gpus=size.get("GPU", 0), object_store_memory=STORE_BYTES, wait=True
    )
