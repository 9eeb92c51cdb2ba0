"""What an engine takes of a cluster, and of vLLM's options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import evaluate_store as made
import pytest

from kvray.errors import ResourceError
from kvray.evaluate.assignments import place
from kvray.evaluate.cells import Cells
from kvray.evaluate.engines import vllm
from kvray.evaluate.engines.base import Serving
from kvray.models.reference import resolve
from kvray.store.store import Store
from kvray.sweep.model import Runtime

LAPTOP = [{"CPU": 2.0}]
CLUSTER = [{"CPU": 4.0}, {"CPU": 48.0, "GPU": 8.0}, {"CPU": 48.0, "GPU": 8.0}]


def test_one_engine_takes_all_cpus_of_a_laptop_and_two_share_them() -> None:
    assert place(Runtime(), LAPTOP) == (2.0, 0.0, 1)
    assert place(Runtime(engines=2), LAPTOP) == (1.0, 0.0, 2)


def test_engines_take_a_gpu_each_where_there_are_gpus() -> None:
    assert place(Runtime(engines=4), CLUSTER) == (24.0, 1.0, 4)
    assert place(Runtime(engines=4, tensor_parallel=4), CLUSTER) == (24.0, 4.0, 4)
    assert place(Runtime(engines=40, gpus_per_engine=0.5, cpus_per_engine=1), CLUSTER)[2] == 32


def test_more_engines_than_fit_run_one_after_the_other() -> None:
    assert place(Runtime(engines=5), LAPTOP) == (1.0, 0.0, 2)


@pytest.mark.parametrize(
    ("runtime", "nodes", "message"),
    [
        (Runtime(gpus_per_engine=1), LAPTOP, "GPU: one engine needs 1 on one node, the largest node has 0"),
        (Runtime(tensor_parallel=16), CLUSTER, "GPU: one engine needs 16 on one node, the largest node has 8"),
        (Runtime(cpus_per_engine=3), LAPTOP, "CPU: one engine needs 3 on one node, the largest node has 2"),
    ],
)
def test_what_cannot_be_had_is_an_error_that_names_it(runtime: Runtime, nodes: list, message: str) -> None:
    with pytest.raises(ResourceError, match=message):
        place(runtime, nodes)


def test_an_engine_makes_room_for_its_adapters_alone() -> None:
    def options(*ranks: int) -> dict[str, Any]:
        serving = Serving(resolve("kvray-tiny"), Runtime(max_loras=4, kv_cache_gib=1), ranks=ranks)
        return vllm.engine_options(serving, 64)

    chosen = options(4, 17)
    assert (chosen["max_loras"], chosen["max_lora_rank"], chosen["trust_remote_code"]) == (2, 32, False)
    assert "max_loras" not in options() and "enable_lora" not in options()
    assert (options(*[8] * 9)["max_loras"], options(*[8] * 9)["max_cpu_loras"]) == (4, 9)
    assert options(*[8] * 900)["max_cpu_loras"] == vllm.CPU_LORAS


def test_half_a_gpu_takes_half_of_its_memory() -> None:
    serving = Serving(resolve("kvray-tiny"), Runtime(gpu_memory_utilization=0.8), gpus=0.5)
    chosen = vllm.engine_options(serving, 64)
    assert chosen["dtype"] == "auto" and chosen["gpu_memory_utilization"] == pytest.approx(0.4)
    assert "kv_cache_memory_bytes" not in chosen and "max_num_seqs" not in chosen  # vLLM's own choice


def test_rows_carry_the_labels_of_the_sweep_that_asks_first(tmp_path: Path) -> None:
    store = Store(tmp_path)
    cell = made.predictions(store, made.dataset(store, made.example_table(3)), None)
    assert Cells(store, resolve("kvray-tiny"), {cell.id: cell}, False, None).labels(cell) == {
        "sweep": "sweep",
        "evaluation": "facts",
        "task": "recall",
        "base_model": "kvray-tiny",
        "mixture": None,
        "finetune": None,
        "seed": None,
        "adapter": None,
    }
