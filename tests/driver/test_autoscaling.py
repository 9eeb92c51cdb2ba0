"""Work on clusters that change: nodes come for it, take it, are lost in the middle of it, and go when it is done."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_cluster
import pytest

from kvray.driver import seats
from kvray.driver.cluster import Cluster, read
from kvray.driver.placement import Shape, room
from kvray.planning.work import EVALUATE, Lane, Nothing, Seat, Source, Unit, Work
from kvray.sweep.model import Runtime

pytestmark = pytest.mark.slow

ENGINE = Shape(1, 1, 1)
UNIT_S = 3.0


@contextlib.contextmanager
def joined(address: str) -> Iterator[None]:
    import ray

    ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    try:
        yield
    finally:
        ray.shutdown()


def sleeping(folder: Path) -> Work:
    """Return what does units by sleeping, and notes in ``folder`` which node began and committed which artefact."""

    def work(source: Source, seat: Seat) -> None:  # nested, so that it travels whole: nodes cannot import this file
        import ray

        node = ray.get_runtime_context().get_node_id()
        source.started(0.5)
        while (unit := source.take()) is not Nothing.END:
            if unit is Nothing.LATER:
                continue
            assert isinstance(unit, Unit)
            (folder / f"{unit.artefact_id}-{node}.begun").touch()
            time.sleep(unit.seconds)
            if source.finish(unit) is not None:
                (folder / f"{unit.artefact_id}-{node}.done").touch()
                source.committed(unit)

    return work


def start(folder: Path, artefacts: int) -> tuple[Any, Any]:
    """Start a dispatcher with so many artefacts of one unit; return it and what is done when all is."""
    import ray

    lane = Lane(EVALUATE, sleeping(folder), {"CPU": 1.0, "GPU": 1.0}, start_s=2.0)
    opening = seats.Opening(lane, Seat("", EVALUATE, gpus=1.0), {"CPU": 1.0, "GPU": 1.0})
    cluster = Cluster(local=False)
    dispatcher = seats.start([opening], 2, lambda: room(cluster.capacity(), Runtime(), {EVALUATE: ENGINE}))
    units = [
        (EVALUATE, f"cell-{n}", [Unit(0, f"cell-{n}", chunks=(0,), rows=1, seconds=UNIT_S)]) for n in range(artefacts)
    ]
    ray.get(dispatcher.change.remote([*(("add", each) for each in units), ("close", ())]))
    return dispatcher, dispatcher.run.remote()


def gpus() -> int:
    return sum("GPU" in node for node in read(local=False).nodes)


def nodes_of(folder: Path, ending: str) -> Counter[str]:
    return Counter(path.stem.rpartition("-")[2] for path in folder.glob(f"*.{ending}"))


def outcomes(dispatcher: Any, over: Any) -> dict[str, str | None]:
    import ray

    ray.get(over, timeout=180)
    return {each.artefact_id: each.error for each in ray.get(dispatcher.state.remote()).outcomes}


def test_from_zero_gpu_nodes_nodes_come_for_the_work_and_go_after_it(tmp_path: Path) -> None:
    with fake_cluster.autoscaling({"gpu": (fake_cluster.GPU_NODE, 2)}) as fake, joined(fake.address):
        assert gpus() == 0
        dispatcher, over = start(tmp_path, artefacts=10)
        assert outcomes(dispatcher, over) == {f"cell-{n}": None for n in range(10)}
        done = nodes_of(tmp_path, "done")
        assert len(done) == 2 and done.total() == 10
        fake_cluster.wait_for(lambda: gpus() == 0, 60, "idle nodes to go")


def test_a_node_that_joins_takes_work_and_one_that_is_lost_costs_none(tmp_path: Path) -> None:
    import ray

    with fake_cluster.nodes(fake_cluster.GPU_NODE) as (cluster, (first,)), joined(cluster.address):
        dispatcher, over = start(tmp_path, artefacts=10)
        fake_cluster.wait_for(lambda: bool(nodes_of(tmp_path, "done")), 60, "the first unit")
        fake_cluster.add(cluster, fake_cluster.GPU_NODE)
        fake_cluster.wait_for(lambda: len(nodes_of(tmp_path, "begun")) == 2, 60, "the new node to take work")
        assert not ray.wait([over], timeout=0)[0]
        cluster.remove_node(first, allow_graceful=False)
        assert outcomes(dispatcher, over) == {f"cell-{n}": None for n in range(10)}
        assert nodes_of(tmp_path, "done").total() == 10
