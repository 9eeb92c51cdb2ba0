"""What is read of a cluster: its nodes as they come and go, and what its autoscaler may add, refuses and starts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import fake_cluster
import pytest

from kvray.driver.seats.cluster import Cluster, read
from kvray.driver.seats.placement import Capacity
from kvray.finetune.placement import Shape

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_ray")]


@contextlib.contextmanager
def joined(address: str) -> Iterator[None]:
    import ray

    ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    try:
        yield
    finally:
        ray.shutdown()


def gpus(capacity: Capacity) -> list[float]:
    return sorted(node["GPU"] for node in capacity.nodes if "GPU" in node)


def test_nodes_that_an_autoscaler_adds_are_seen_and_what_it_refuses(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from ray.util import placement_group, remove_placement_group

    types = {"gpu": ({"CPU": 2, "GPU": 1}, 2), "big": ({"CPU": 4, "GPU": 4}, 1)}
    with fake_cluster.autoscaling(types) as fake, joined(fake.address):
        monkeypatch.setenv("HOME", str(fake.home))
        at_first = read(local=False)
        assert gpus(at_first) == [] and [node["CPU"] for node in at_first.nodes] == [1] and not at_first.silent
        assert [(each.name, each.resources["GPU"], each.more) for each in at_first.types] == [
            ("gpu", 1, 2),
            ("big", 4, 1),
        ]
        assert read(local=True) == Capacity(at_first.nodes)
        monkeypatch.setenv("HOME", str(tmp_path))
        assert read(local=False).silent and not read(local=False).types

        asked, never = placement_group([{"CPU": 1, "GPU": 1}]), placement_group([{"CPU": 1, "GPU": 8}])
        seen = []

        def come() -> bool:
            seen.append(read(local=False))
            return gpus(seen[-1]) == [1] and bool(seen[-1].refused)

        fake_cluster.wait_for(come, 60, "a node of type gpu")
        assert any(each.launching for each in seen)
        assert seen[-1].refuses(Shape(1, 1, 8)) and not seen[-1].refuses(Shape(1, 1, 1))
        monkeypatch.setenv("HOME", str(fake.home))
        fake_cluster.wait_for(
            lambda: [(each.name, each.more) for each in read(local=False).types] == [("gpu", 1), ("big", 1)],
            10,
            "one fewer of type gpu to come",
        )
        remove_placement_group(asked)
        remove_placement_group(never)
        fake_cluster.wait_for(lambda: gpus(read(local=False)) == [], 60, "the idle node to go")


def test_without_an_autoscaler_live_nodes_are_all_there_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # What `ray up` left of another cluster says nothing of this one.
    (tmp_path / "ray_bootstrap_config.yaml").write_text("available_node_types: {}")
    monkeypatch.setenv("HOME", str(tmp_path))
    clock = iter([0.0, 1.0, 2.5, 5.0])
    with fake_cluster.nodes({"CPU": 2, "GPU": 1}) as (ray_cluster, (first,)), joined(ray_cluster.address):
        cluster = Cluster(local=False, clock=lambda: next(clock))
        assert gpus(cluster.capacity()) == [1] and not cluster.capacity().silent and not cluster.capacity().types
        fake_cluster.add(ray_cluster, {"CPU": 4, "GPU": 4})
        ray_cluster.remove_node(first)
        fake_cluster.wait_for(lambda: gpus(read(local=False)) == [4], 60, "one node to go")
        assert gpus(cluster.capacity()) == [4]
