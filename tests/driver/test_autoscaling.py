"""Work on clusters that change: nodes come for it, take it, are lost in the middle of it, and go when it is done."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import fake_cluster
import pytest

from kvray.driver.seats.cluster import Cluster, read
from kvray.driver.seats.dispatcher import Opening, Seats
from kvray.driver.seats.lanes import Space
from kvray.driver.seats.placement import Place
from kvray.driver.seats.queue import Limits
from kvray.finetune.placement import Shape
from kvray.planning.work import EVALUATE, Lane, Nothing, Seat, Source, Unit
from kvray.store.store import Store
from kvray.sweep.model import Runtime

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_ray")]

SMALL = """
name: small
base_model: kvray-tiny
datasets: {ours: {task: simple_kv, rows: 32}}
finetune: {seeds: 0, epochs: 1}
evaluate: {recall: {task: recall, source: tiny, questions: 8}}
"""
CELLS = [f"cell-{number}" for number in range(10)]
UNIT_S = 3.0
LIMIT_S = 240.0


@contextlib.contextmanager
def joined(address: str) -> Iterator[None]:
    import ray
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # nodes cannot import a test
    ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    try:
        yield
    finally:
        ray.shutdown()
        cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


class Stand:
    """Does units by sleeping, and notes in a folder which node began and committed which artefact."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, source: Source, seat: Seat) -> None:
        import ray

        node = ray.get_runtime_context().get_node_id()
        source.started(0.5)
        while (unit := source.take()) is not Nothing.END:
            if unit is Nothing.LATER:
                continue
            (self.folder / f"{unit.artefact_id}-{node}.begun").touch()
            time.sleep(unit.seconds)
            if source.finish(unit) is not None:
                (self.folder / f"{unit.artefact_id}-{node}.done").touch()
                source.committed(unit)

    def nodes(self, ending: str) -> Counter[str]:
        """Return the nodes that have begun or done artefacts, and how many each."""
        return Counter(path.stem.rpartition("-")[2] for path in self.folder.glob(f"*.{ending}"))


def make(stand: Stand, meanwhile: Callable[[], None] = lambda: None, retries: int = 2) -> dict[str, str | None]:
    """Make :data:`CELLS`, of one unit each, on one GPU each; call ``meanwhile`` again and again; return how each ended.

    As the driver does: what the cluster has is read again and again, too.
    """
    place, cluster, runtime = Place(Shape(1, 1, 1), threads=1), Cluster(local=False), Runtime()
    opening = Opening(Lane(EVALUATE, stand, place.needs, start_s=2.0), Seat("", EVALUATE, gpus=1.0), place, place.needs)
    seats = Seats(
        [opening],
        Limits(retries),
        Space(runtime, {EVALUATE: place}),
        cluster.capacity(),
        Store(stand.folder / "store"),
    )
    seats.change([("add", (EVALUATE, name, [Unit(0, name, chunks=(0,), rows=1, seconds=UNIT_S)])) for name in CELLS])
    ended: dict[str, str | None] = {}
    deadline = time.monotonic() + LIMIT_S
    try:
        while len(ended) < len(CELLS):
            assert time.monotonic() < deadline, ended
            ended |= {outcome.artefact_id: outcome.error for outcome in seats.poll()[0]}
            seats.see(cluster.capacity())
            meanwhile()
            time.sleep(0.1)
    finally:
        seats.close(wait=True)
    return ended


def gpus() -> int:
    return sum("GPU" in node for node in read(local=False).nodes)


def test_from_zero_gpu_nodes_nodes_come_for_the_work_and_go_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand = Stand(tmp_path)
    with fake_cluster.autoscaling({"gpu": (fake_cluster.GPU_NODE, 2)}) as fake, joined(fake.address):
        monkeypatch.setenv("HOME", str(fake.home))
        assert gpus() == 0
        assert make(stand) == dict.fromkeys(CELLS)
        done = stand.nodes("done")
        assert len(done) == 2 and done.total() == len(CELLS)
        fake_cluster.wait_for(lambda: gpus() == 0, 60, "idle nodes to go")


def test_a_node_that_joins_takes_work_and_one_that_is_lost_costs_none(tmp_path: Path) -> None:
    stand = Stand(tmp_path)
    with fake_cluster.nodes(fake_cluster.GPU_NODE) as (cluster, left), joined(cluster.address):
        joining: list[object] = []

        def meanwhile() -> None:
            if not joining and stand.nodes("done"):
                joining.append(fake_cluster.add(cluster, fake_cluster.GPU_NODE))
            if left and len(stand.nodes("begun")) == 2:
                cluster.remove_node(left.pop(), allow_graceful=False)

        assert make(stand, meanwhile) == dict.fromkeys(CELLS)
        assert not left and stand.nodes("done").total() == len(CELLS)


def test_more_nodes_are_lost_than_there_are_retries_and_no_work_fails(tmp_path: Path) -> None:
    stand = Stand(tmp_path)
    losses = 4
    with fake_cluster.nodes(fake_cluster.GPU_NODE) as (cluster, there), joined(cluster.address):
        lost: list[str] = []

        def meanwhile() -> None:
            begun = [node for node in stand.nodes("begun") if node not in lost]
            if there and begun and len(lost) < losses:
                lost.append(begun[0])
                cluster.remove_node(there.pop(), allow_graceful=False)
                there.append(fake_cluster.add(cluster, fake_cluster.GPU_NODE))

        assert make(stand, meanwhile, retries=0) == dict.fromkeys(CELLS)
        assert len(lost) == losses and stand.nodes("done").total() == len(CELLS)


def test_a_whole_sweep_from_no_node_that_could_work(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(SMALL)
    command = [
        sys.executable,
        "-m",
        "kvray.cli",
        "run",
        str(tmp_path / "small.yaml"),
        "--store",
        str(tmp_path / "store"),
    ]
    with fake_cluster.autoscaling({"cpu": ({"CPU": 2}, 2)}, head_cpus=0) as fake:
        paths = {"PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(
            command, env={**fake.environment(), **paths}, capture_output=True, text=True, check=False, timeout=540
        )
        assert done.returncode == 0, done.stderr
        with joined(fake.address):
            fake_cluster.wait_for(lambda: len(read(local=False).nodes) == 1, 60, "idle nodes to go")
    kinds = Counter(path.parts[-3] for path in (tmp_path / "store").glob("*/*/manifest.json"))
    assert kinds == {"datasets": 2, "finetunes": 1, "predictions": 2}
