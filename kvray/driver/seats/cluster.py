"""What the cluster has, and what its autoscaler may add: read from Ray again and again, as nodes come and go.

Ray has no public call for what an autoscaler may add (`ray._private.state.get_cluster_config` stays empty: nothing in
Ray 2.60 fills it). What tells of it:

- ``ray up`` leaves its configuration on the head as ``~/ray_bootstrap_config.yaml``: node types, what each has, bounds;
- autoscaler v2 (``ray up`` since Ray 2.50, KubeRay) reports to Ray's control store (GCS) which demands no node type of
  it can meet, which nodes it starts, and which could not be started;
- autoscaler v1 reports its nodes' types by name. Without an autoscaler each node is reported as a type of its own.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from kvray.driver.seats.placement import Capacity, NodeType

BOOTSTRAP = "~/ray_bootstrap_config.yaml"
READ_EVERY_S = 2.0
_ANSWER_S = 5
_OWN_TYPE = "node_"
"""What autoscaler v1 puts before a node's id to name its type where nothing is scaled."""


class Cluster:
    """The Ray that this process is connected to, as a driver or in a worker; ``local``: one started for this run."""

    def __init__(self, local: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self.local = local
        self._clock = clock
        self._read_at: float | None = None
        self._capacity = Capacity()

    def capacity(self) -> Capacity:
        """Return what there is, at most :data:`READ_EVERY_S` old.

        While Ray's control store is not reachable, what was there before; RpcError if there is nothing before.
        """
        from ray.exceptions import RpcError

        now = self._clock()
        if self._read_at is None or now - self._read_at >= READ_EVERY_S:
            try:
                self._capacity = read(self.local)
            except RpcError:
                if self._read_at is None:
                    raise
            self._read_at = now
        return self._capacity


def read(local: bool) -> Capacity:
    """Return what the cluster has now and may get; a ``local`` Ray has no autoscaler."""
    from ray._private.worker import global_worker
    from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply, NodeStatus

    gcs = global_worker.gcs_client
    status = GetClusterStatusReply()
    status.ParseFromString(gcs.get_cluster_status(timeout_s=_ANSWER_S))
    gone = (NodeStatus.DEAD, NodeStatus.DRAINING)
    live = [node for node in status.cluster_resource_state.node_states if node.status not in gone]
    nodes = [dict(node.total_resources) for node in live]
    if local or not (version := _autoscaler(gcs)):
        return Capacity(nodes)
    types = _types(Counter(node.ray_node_type_name for node in live)) if _on_head(gcs) else None
    state = status.autoscaling_state
    singles = state.infeasible_resource_requests
    groups = [request for group in state.infeasible_gang_resource_requests for request in group.requests]
    refused = {(_amount(each, "CPU"), _amount(each, "GPU")) for each in (*singles, *groups)}
    return Capacity(
        nodes,
        types=types or (),
        silent=types is None,
        refused=frozenset(refused) if version == 2 else frozenset(),
        launching=bool(state.pending_instance_requests or state.pending_instances),
        failed=sorted({f"{each.ray_node_type_name}: {each.reason}" for each in state.failed_instance_requests}),
    )


def remove_orphans() -> int:
    """Remove the placement groups of this job that actors made which are dead; return how many there were.

    Ray 2.60 keeps a placement group until the job ends, whoever made it, and with it the devices that it holds: those
    of Tune's trials when the dispatcher dies, those of a worker group when its controller does. (Ray Train has a
    cleaner, which asks the dashboard for the controller's state, and does nothing without one.)
    """
    import ray
    from ray._private.state import state
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    job = ray.JobID.from_hex(ray.get_runtime_context().get_job_id())
    groups = map(PlacementGroupTableData.FromString, state._connect_and_get_accessor().get_placement_group_table())
    made = [
        group
        for group in groups
        if group.creator_job_id == job.binary()
        and group.creator_actor_id.strip(b"\xff")  # of the driver itself: nil
        and group.state != PlacementGroupTableData.REMOVED
    ]
    dead = state.actor_table(None, job, "DEAD") if made else {}
    orphans = [group for group in made if group.creator_actor_id.hex() in dead]
    for group in orphans:
        remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.placement_group_id)))
    return len(orphans)


def lost_nodes() -> set[str]:
    """Return the ids of this cluster's nodes that were lost or have left.

    Ray takes some 15 s to tell (its health check misses five answers, 3 s apart); until then such a node is alive, and
    what ran there is "temporarily unavailable".
    """
    import ray

    return {node["NodeID"] for node in ray.nodes() if not node["Alive"]}


def says_lost(trace: str) -> bool:
    """Return whether Ray says that an actor died with its node, lost or taken away with notice."""
    return "The actor died because its node has died" in trace  # of ActorDiedError, which has no attribute for it


def _autoscaler(gcs: Any) -> int:
    """Return the version of the cluster's autoscaler, 0 if it has none."""
    from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
    from ray.autoscaler.v2.utils import is_autoscaler_v2

    if is_autoscaler_v2(fetch_from_server=True, gcs_client=gcs):
        return 2
    told = gcs.internal_kv_get(DEBUG_AUTOSCALING_STATUS.encode(), None, timeout=_ANSWER_S)
    names = json.loads(told).get("autoscaler_report", {}).get("active_nodes", {}) if told else {}
    return int(any(not name.startswith(_OWN_TYPE) for name in names))


def _on_head(gcs: Any) -> bool:
    import ray

    host, _, _ = gcs.address.rpartition(":")
    return host.strip("[]") in (ray.util.get_node_ip_address(), "127.0.0.1", "localhost")


def _types(live: Mapping[str, int]) -> list[NodeType] | None:
    """Return what may be added to the live nodes, counted by type; None if this machine was not set up by ``ray up``.

    None, too, if the resources of a type are not in its configuration, as none of its nodes has ever started.
    """
    try:
        config = yaml.safe_load(Path(BOOTSTRAP).expanduser().read_text(encoding="utf-8"))
    except OSError:
        return None
    workers = sum(live.values()) - 1
    types = []
    for name, each in config["available_node_types"].items():
        own = each.get("max_workers", 0) + (name == config["head_node_type"]) - live.get(name, 0)
        more = max(0, min(own, config.get("max_workers", own) - workers))
        resources = each.get("resources") or {}
        if more and "CPU" not in resources:
            return None
        types.append(NodeType(name, {key: float(amount) for key, amount in resources.items()}, more))
    return [each for each in types if each.more]


def _amount(request: Any, name: str) -> float:
    return float(dict(request.resources_bundle).get(name, 0.0))
