"""What a seat holds, how many fit, and what can never be placed. Sizes of clusters as they are rented."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest

from kvray.driver.seats.placement import (
    REFUSED_S,
    Capacity,
    NodeType,
    Resources,
    check_wait,
    fit,
    place_engines,
    place_finetunes,
    room,
)
from kvray.errors import InputError, ResourceError
from kvray.finetune.placement import Shape
from kvray.models.reference import BaseModelRef
from kvray.sweep.model import Runtime

HUB = BaseModelRef("org/model", "org/model", "1" * 40, "hub:org/model@1")
LOCAL = BaseModelRef("kvray-tiny", "/models/kvray-tiny", None, "sha256:1")
HEAD, G5, P4D = {"CPU": 8.0}, {"CPU": 4.0, "GPU": 1.0}, {"CPU": 96.0, "GPU": 8.0}
LAPTOP = Capacity([{"CPU": 2.0}])
FROM_ZERO = Capacity([HEAD], [NodeType("gpu", G5, 4)])
MIXED = Capacity([HEAD, P4D, G5])
SILENT = Capacity([HEAD], silent=True)


def seats(capacity: Capacity, runtime: Runtime, shape: Shape) -> int:
    """Return how many seats of one shape fit."""
    return next(count for count in itertools.count() if not fit(capacity, runtime, [(shape, count + 1)]))


@pytest.mark.parametrize("capacity", [FROM_ZERO, MIXED, SILENT])
def test_a_model_takes_gpus_where_there_are_any_or_may_be(capacity: Capacity) -> None:
    assert place_finetunes(Runtime(), capacity, HUB).shape.gpus == 1
    assert place_engines(Runtime(), capacity, HUB, local=False).shape.gpus == 1
    assert place_engines(Runtime(tensor_parallel=4), Capacity([P4D]), LOCAL, local=False).shape.gpus == 4


def test_a_cpu_is_taken_for_a_model_of_the_hub_only_if_the_sweep_says_so() -> None:
    with pytest.raises(
        ResourceError, match=r"org/model is a model of the hub .*no GPU \(nodes of 2 CPU.*per_finetune=0"
    ):
        place_finetunes(Runtime(), LAPTOP, HUB)
    with pytest.raises(ResourceError, match=r"only if the sweep says so: --set runtime.gpus_per_engine=0"):
        place_engines(Runtime(), LAPTOP, HUB, local=True)
    assert place_finetunes(Runtime(gpus_per_finetune=0), LAPTOP, HUB).needs == {"CPU": 1.0, "GPU": 0.0}
    assert place_engines(Runtime(gpus_per_engine=0), LAPTOP, HUB, local=True).shape.gpus == 0
    assert place_engines(Runtime(), SILENT, LOCAL, local=False).shape.gpus == 0


def test_on_a_laptop_an_engine_computes_with_its_share_of_threads_and_leaves_room_for_a_finetune() -> None:
    engine, slot = place_engines(Runtime(), LAPTOP, LOCAL, local=True), place_finetunes(Runtime(), LAPTOP, LOCAL)
    assert (engine.shape, engine.threads, engine.most) == (Shape(1, 1, 0), 2, 1)
    assert fit(LAPTOP, Runtime(), [(engine.shape, 1), (slot.shape, 1)])
    two = place_engines(Runtime(engines=2), LAPTOP, LOCAL, local=True)
    assert (two.threads, two.most) == (1, 2)


def test_on_a_cluster_of_cpus_an_engine_reserves_what_it_computes_with_but_one() -> None:
    cpus = Capacity([{"CPU": 16.0}, {"CPU": 16.0}])
    assert place_engines(Runtime(), cpus, LOCAL, local=False).shape.cpus == 15
    four = place_engines(Runtime(engines=4), cpus, LOCAL, local=False)
    assert (four.shape.cpus, four.most) == (7, 4)
    assert place_engines(Runtime(cpus_per_engine=2), cpus, LOCAL, local=False).shape.cpus == 2


def test_all_gpus_of_unlike_nodes_are_used_by_engines_and_slots_alike() -> None:
    engine, slot = place_engines(Runtime(), MIXED, HUB, local=False), place_finetunes(Runtime(), MIXED, HUB)
    assert (engine.shape, engine.most, slot.most) == (Shape(1, 2, 1), None, None)
    assert seats(MIXED, Runtime(), engine.shape) == 9 == seats(MIXED, Runtime(), slot.shape)
    assert fit(MIXED, Runtime(), [(engine.shape, 4), (slot.shape, 5)])
    assert not fit(MIXED, Runtime(), [(engine.shape, 4), (slot.shape, 6)])


def test_nodes_with_fewer_cpus_than_gpus_hold_an_engine_per_gpu() -> None:
    few = Capacity([{"CPU": 4.0, "GPU": 8.0}])
    engine = place_engines(Runtime(), few, HUB, local=False)
    assert seats(few, Runtime(), engine.shape) == 8


def test_nodes_that_may_come_count_and_max_gpus_bounds_them() -> None:
    shape = Shape(1, 1, 1)
    assert seats(FROM_ZERO, Runtime(), shape) == 4
    assert seats(FROM_ZERO, Runtime(max_gpus=3), shape) == 3
    assert fit(SILENT, Runtime(), [(shape, 64)]) and not fit(SILENT, Runtime(max_gpus=63), [(shape, 64)])


def test_a_silent_autoscaler_has_room_until_it_refuses() -> None:
    shape, other = Shape(1, 1, 1), Shape(1, 2, 1)
    full = Capacity([HEAD, G5], silent=True, refused={(1.0, 1.0)})
    assert seats(full, Runtime(), shape) == 1
    assert fit(full, Runtime(), [(other, 9)])


def test_workers_of_a_finetune_may_be_on_several_nodes() -> None:
    slot = place_finetunes(Runtime(workers_per_finetune=4), FROM_ZERO, HUB)
    assert seats(FROM_ZERO, Runtime(), slot.shape) == 1
    assert slot.needs == {"CPU": 4.0, "GPU": 4.0}


def test_packing_agrees_with_trying_every_way() -> None:
    def tried(nodes: list[Resources], workers: list[tuple[float, float]]) -> bool:
        if not workers:
            return True
        (cpus, gpus), rest = workers[0], workers[1:]
        for number, node in enumerate(nodes):
            if node["CPU"] >= cpus and node.get("GPU", 0.0) >= gpus:
                left = {"CPU": node["CPU"] - cpus, "GPU": node.get("GPU", 0.0) - gpus}
                if tried([*nodes[:number], left, *nodes[number + 1 :]], rest):
                    return True
        return False

    random_of = random.Random(0)
    agreed = 0
    for _ in range(300):
        nodes = [
            {"CPU": float(random_of.randint(1, 4)), "GPU": float(random_of.randint(0, 2))}
            for _ in range(random_of.randint(1, 3))
        ]
        asked = [(Shape(1, 1, gpus), random_of.randint(0, 3)) for gpus in (1.0, 0.0)]
        workers = [(shape.cpus, shape.gpus) for shape, count in asked for _ in range(count)]
        room = fit(Capacity(nodes), Runtime(), asked)
        assert room == tried(list(nodes), workers), (nodes, asked)
        agreed += room
    assert 50 < agreed < 250  # neither answer is a matter of course


@pytest.mark.parametrize(
    ("asked", "capacity", "message"),
    [
        (
            {"cpus_per_finetune": 3},
            LAPTOP,
            r"needs 3 CPU \+ 0 GPU on one node; .* nodes of 2 CPU .*runtime.cpus_per_fin",
        ),
        ({"gpus_per_finetune": 2}, FROM_ZERO, r"needs 1 CPU \+ 2 GPU .* up to 4 more of type gpu with 4 CPU \+ 1 GPU"),
        ({"workers_per_finetune": 9}, FROM_ZERO, r"needs 9 workers of 1 CPU \+ 1 GPU, .* which hold 4 of them"),
        ({"workers_per_finetune": 2, "max_gpus": 1}, SILENT, r"needs 2 GPU, runtime.max_gpus allows 1"),
    ],
)
def test_what_can_never_be_placed_is_refused_at_once(asked: dict[str, int], capacity: Capacity, message: str) -> None:
    with pytest.raises(ResourceError, match=message):
        place_finetunes(Runtime(**asked), capacity, LOCAL if capacity is LAPTOP else HUB)


def test_an_engine_that_no_node_holds_is_refused_and_one_that_might_come_is_not() -> None:
    with pytest.raises(
        ResourceError, match=r"one engine needs \S+ CPU \+ 16 GPU on one node; .*runtime.tensor_parallel"
    ):
        place_engines(Runtime(tensor_parallel=16), MIXED, HUB, local=False)
    assert place_engines(Runtime(tensor_parallel=16), SILENT, HUB, local=False).shape.gpus == 16


def test_workers_of_one_finetune_do_not_share_a_gpu() -> None:
    with pytest.raises(InputError, match="whole GPUs"):
        place_finetunes(Runtime(gpus_per_finetune=0.5, workers_per_finetune=2), MIXED, HUB)


def test_what_waits_too_long_is_an_error_that_says_for_what() -> None:
    runtime, failed = Runtime(wait_minutes=2), Capacity([HEAD], silent=True, failed=["gpu: no such instances left"])
    check_wait([Shape(1, 1, 1)], 119.0, failed, runtime)
    check_wait([], 999.0, failed, runtime)
    with pytest.raises(ResourceError, match=r"for 2 minutes .*needs 1 CPU \+ 1 GPU .*no such instances.*ray status"):
        check_wait([Shape(1, 1, 1)], 120.0, failed, runtime)


def test_what_the_autoscaler_refuses_for_long_is_never_placed() -> None:
    refusing = Capacity([HEAD], silent=True, refused={(1.0, 8.0)})
    check_wait([Shape(1, 1, 8)], REFUSED_S - 1, refusing, Runtime())
    check_wait([Shape(1, 1, 8)], REFUSED_S, replace(refusing, launching=True), Runtime())
    check_wait([Shape(1, 1, 8), Shape(1, 1, 1)], REFUSED_S, refusing, Runtime())
    with pytest.raises(ResourceError, match=r"needs 1 CPU \+ 8 GPU on one node.*which refuses that"):
        check_wait([Shape(1, 1, 8)], REFUSED_S, refusing, Runtime())


def test_room_is_asked_by_lane() -> None:
    fits = room(FROM_ZERO, Runtime(max_gpus=3), {"finetune": Shape(2, 1, 1), "evaluate": Shape(1, 2, 1)})
    assert fits({"finetune": 1, "evaluate": 1}) and fits({"evaluate": 3}) and not fits({"finetune": 1, "evaluate": 2})
