"""What cannot be had is refused at once and named; what fits runs side by side."""

from __future__ import annotations

import pytest

from kvray.errors import InputError, ResourceError
from kvray.finetune.placement import Shape, place
from kvray.sweep.model import Runtime

LAPTOP = [{"CPU": 2.0}]
GPU_NODES = [{"CPU": 4.0}, {"CPU": 16.0, "GPU": 4.0}, {"CPU": 16.0, "GPU": 4.0}]


@pytest.mark.parametrize(
    ("asked", "nodes", "shape", "slots"),
    [
        ({}, LAPTOP, Shape(1, 1, 0), 2),
        ({"concurrent_finetunes": 1}, LAPTOP, Shape(1, 1, 0), 1),
        ({"concurrent_finetunes": 9}, LAPTOP, Shape(1, 1, 0), 2),
        ({"workers_per_finetune": 2}, LAPTOP, Shape(2, 1, 0), 1),
        ({"cpus_per_finetune": 0.5}, LAPTOP, Shape(1, 0.5, 0), 4),
        ({}, GPU_NODES, Shape(1, 1, 1), 8),
        ({"workers_per_finetune": 3}, GPU_NODES, Shape(3, 1, 1), 2),
        ({"gpus_per_finetune": 0.5}, GPU_NODES, Shape(1, 1, 0.5), 16),
        ({"gpus_per_finetune": 0}, GPU_NODES, Shape(1, 1, 0), 36),
        ({"cpus_per_finetune": 8}, GPU_NODES, Shape(1, 8, 1), 4),
    ],
)
def test_as_many_run_at_a_time_as_fit(asked, nodes, shape, slots):
    assert place(Runtime(**asked), nodes, {}) == (shape, slots)


@pytest.mark.parametrize(
    ("asked", "nodes", "message"),
    [
        ({"cpus_per_finetune": 3}, LAPTOP, r"needs 3 CPU .* has 2; lower .*runtime.cpus_per_finetune"),
        ({"workers_per_finetune": 4}, LAPTOP, r"needs 4 CPU \(4 workers x cpus_per_finetune 1\)"),
        ({"gpus_per_finetune": 1}, LAPTOP, r"needs 1 GPU .* has 0"),
        ({"workers_per_finetune": 9}, GPU_NODES, r"needs 9 GPU .* has 8"),
        ({"cpus_per_finetune": 20}, GPU_NODES, r"1 workers of 20 CPU \+ 1 GPU, each whole on one node.* hold 0"),
    ],
)
def test_what_no_node_could_hold_is_refused_by_name(asked, nodes, message):
    with pytest.raises(ResourceError, match=message):
        place(Runtime(**asked), nodes, {})


def test_what_an_autoscaler_may_add_counts():
    asked = Runtime(gpus_per_finetune=1, workers_per_finetune=2)
    assert place(asked, LAPTOP, {"CPU": 64, "GPU": 8}) == (Shape(2, 1, 1), 4)
    with pytest.raises(ResourceError, match=r"needs 2 GPU .* has 1"):
        place(asked, LAPTOP, {"CPU": 64, "GPU": 1})


def test_workers_of_one_finetune_do_not_share_a_gpu():
    with pytest.raises(InputError, match="whole GPUs"):
        place(Runtime(gpus_per_finetune=0.5, workers_per_finetune=2), GPU_NODES, {})
